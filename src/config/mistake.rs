//! What is wrong with a config: every mistake with its place, the value, and a remedy.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use serde::{Serialize, Serializer, ser::SerializeMap};
use std::{fmt, ops::Range, path::PathBuf, sync::Arc};

macro_rules! codes {
    ($($(#[$meaning:meta])+ $variant:ident = $name:literal,)+) => {
        /// The kinds of mistakes. Their names are stable: scripts may rely on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$meaning])+ $variant,)+ }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)+];

            /// The stable name.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)+ }
            }
        }
    };
}

codes! {
    /// The file cannot be found, opened or read.
    Unreadable = "unreadable",
    /// The file is not UTF-8 text.
    NotText = "not-text",
    /// The file is not TOML.
    Syntax = "syntax",
    /// A key or section that does not exist.
    UnknownKey = "unknown-key",
    /// A value of the wrong type.
    WrongType = "wrong-type",
    /// A value that cannot be understood, or is out of range.
    BadValue = "bad-value",
    /// No engine of that name.
    UnknownEngine = "unknown-engine",
    /// No swap mechanism of that name.
    UnknownMechanism = "unknown-mechanism",
    /// The file describes no model.
    NoModels = "no-models",
    /// A key that this engine needs is not there.
    MissingKey = "missing-key",
    /// Two models answer to one name.
    DuplicateName = "duplicate-name",
    /// Two keys contradict each other.
    Conflict = "conflict",
    /// A template that cannot be filled.
    BadTemplate = "bad-template",
    /// A mechanism that this engine cannot be swapped by.
    UnsuitedMechanism = "unsuited-mechanism",
    /// A path that does not exist or cannot be used.
    MissingPath = "missing-path",
    /// A program that is not on PATH or cannot be executed.
    MissingProgram = "missing-program",
    /// A port or address that cannot be listened on.
    PortUnavailable = "port-unavailable",
    /// More GPUs than the job has.
    MissingGpu = "missing-gpu",
    /// Memory that can never fit into the job.
    NeverFits = "never-fits",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One mistake.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// Its kind.
    pub code: Code,
    /// What is wrong, with the offending value.
    pub message: String,
    /// What to do about it.
    pub help: String,
    /// Where it is: bytes of the file, each with a word on it; the first one is the place itself.
    pub places: Vec<(Range<usize>, String)>,
}

impl Mistake {
    /// A mistake at a place of the file.
    pub fn at(span: Range<usize>, code: Code, message: impl Into<String>, help: impl Into<String>) -> Self {
        Mistake { places: vec![(span, String::new())], ..Mistake::whole(code, message, help) }
    }

    /// A mistake of the file as a whole.
    pub fn whole(code: Code, message: impl Into<String>, help: impl Into<String>) -> Self {
        Mistake { code, message: message.into(), help: help.into(), places: Vec::new() }
    }

    /// Says a word on the place itself.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        if let Some(first) = self.places.first_mut() {
            first.1 = label.into();
        }
        self
    }

    /// Shows a second place that has to do with it.
    #[must_use]
    pub fn and(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.places.push((span, label.into()));
        self
    }
}

/// All mistakes of one config.
#[derive(Debug)]
pub struct Mistakes {
    file: PathBuf,
    text: Arc<str>,
    list: Vec<Mistake>,
}

impl Mistakes {
    /// The mistakes of a file with this text, in the order of the file.
    pub(super) fn new(file: impl Into<PathBuf>, text: impl Into<Arc<str>>, mut found: Vec<Mistake>) -> Self {
        found.sort_by_key(|m| m.places.first().map(|p| p.0.start));
        let mut list: Vec<Mistake> = Vec::new();
        for mistake in found {
            // The same thing said of several places is said once: four models whose program is not on PATH.
            match list.iter_mut().find(|m| m.code == mistake.code && m.message == mistake.message) {
                Some(first) => first.places.extend(mistake.places),
                None => list.push(mistake),
            }
        }
        Mistakes { file: file.into(), text: text.into(), list }
    }

    /// Every mistake.
    pub fn list(&self) -> &[Mistake] {
        &self.list
    }

    /// Whether the file could not even be read.
    pub fn unreadable(&self) -> bool {
        self.list.iter().any(|m| m.code == Code::Unreadable)
    }

    /// For people: each mistake with the lines it stands on, and how many there are.
    pub fn render(&self, color: bool) -> String {
        let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::none() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(110).with_links(false);
        let source = NamedSource::new(self.file.display().to_string(), Arc::clone(&self.text));
        let mut text = String::new();
        for mistake in &self.list {
            let shown = Shown { mistake, source: &source };
            handler.render_report(&mut text, &shown).expect("writing to a String cannot fail");
            text.push('\n');
        }
        text + &self.to_string() + "\n"
    }

    /// Line and column of a byte, both from 1, columns in characters.
    fn position(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        (before.matches('\n').count() + 1, line.chars().count() + 1)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, s) = (self.list.len(), if self.list.len() == 1 { "" } else { "s" });
        write!(f, "{n} mistake{s} in {}; nothing was started", self.file.display())
    }
}

impl std::error::Error for Mistakes {}

/// A list of `{code, message, help, file, line, column, value}`.
impl Serialize for Mistakes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.list.iter().map(|mistake| Located { all: self, mistake }))
    }
}

struct Located<'a> {
    all: &'a Mistakes,
    mistake: &'a Mistake,
}

impl Serialize for Located<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("code", self.mistake.code.name())?;
        map.serialize_entry("message", &self.mistake.message)?;
        map.serialize_entry("help", &self.mistake.help)?;
        map.serialize_entry("file", &self.all.file)?;
        if let Some((span, _)) = self.mistake.places.first() {
            let (line, column) = self.all.position(span.start);
            map.serialize_entry("line", &line)?;
            map.serialize_entry("column", &column)?;
            map.serialize_entry("value", self.all.text.get(span.clone()).unwrap_or_default())?;
        }
        map.end()
    }
}

/// A mistake with its source, as miette draws it.
struct Shown<'a> {
    mistake: &'a Mistake,
    source: &'a NamedSource<Arc<str>>,
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mistake.fmt(f)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mistake.message)
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.mistake.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.mistake.help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let places = self.mistake.places.iter();
        Some(Box::new(places.map(|(span, label)| {
            LabeledSpan::new((!label.is_empty()).then(|| label.clone()), span.start, span.len())
        })))
    }
}
