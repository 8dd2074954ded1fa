//! One way to print: a table for people, JSON for scripts, or nothing but what was asked for.

use serde::Serialize;
use std::io::{self, Write};

/// Something a verb shows. It serialises as its JSON form.
pub trait Report: Serialize {
    /// Writes it for people.
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()>;

    /// Writes what is left under `--quiet`; nothing, unless the verb's whole point is its output.
    fn quiet(&self, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For people.
    Human,
    /// One JSON value, indented.
    Json,
    /// Only the bare answer.
    Quiet,
}

/// The one place that writes to standard output.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// How to print.
    pub mode: Mode,
    /// Colours, where people read.
    pub style: Style,
}

impl Output {
    /// Prints a report.
    pub fn show(self, report: &impl Report) -> io::Result<()> {
        unless_closed(self.write(report, &mut io::stdout().lock()))
    }

    /// Writes a report where it is told to.
    pub fn write(self, report: &impl Report, out: &mut dyn Write) -> io::Result<()> {
        match self.mode {
            Mode::Human => report.human(out, self.style)?,
            Mode::Quiet => report.quiet(out)?,
            Mode::Json => {
                serde_json::to_writer_pretty(&mut *out, report)?;
                writeln!(out)?;
            }
        }
        out.flush()
    }
}

/// Prints text as it is.
pub fn print(text: &[u8]) -> io::Result<()> {
    unless_closed(io::stdout().lock().write_all(text))
}

/// A reader that has seen enough (`| head`) closes the pipe; that is no failure.
fn unless_closed(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// Terminal colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether escape sequences are written.
    pub color: bool,
}

impl Style {
    /// Good news.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Something to look at.
    pub fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Something broken.
    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Something less important.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Greeting {
        text: &'static str,
    }

    impl Report for Greeting {
        fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
            writeln!(out, "says {}", style.good(self.text))
        }
    }

    fn shown(mode: Mode, color: bool) -> String {
        let mut out = Vec::new();
        Output { mode, style: Style { color } }.write(&Greeting { text: "hello" }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_report_three_forms() {
        assert_eq!(shown(Mode::Human, false), "says hello\n");
        assert_eq!(shown(Mode::Human, true), "says \x1b[32mhello\x1b[0m\n");
        assert_eq!(shown(Mode::Json, true), "{\n  \"text\": \"hello\"\n}\n");
        assert_eq!(shown(Mode::Quiet, true), "");
    }
}
