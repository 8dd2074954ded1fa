//! How a verb fails: an exit code, what was tried, why it failed, what to do.

use super::exit::Exit;
use crate::config::Mistakes;
use serde_json::json;
use std::error::Error as StdError;

/// The end of a verb that did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config has mistakes, or cannot be read.
    #[error(transparent)]
    Config(#[from] Mistakes),
    /// Anything else.
    #[error("{message}")]
    Failed {
        /// The code to end with.
        exit: Exit,
        /// What was tried, on what, and why it failed.
        message: String,
        /// What to do about it.
        remedy: Option<String>,
        /// The cause.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
}

impl Error {
    /// A failure with its exit code and message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Error::Failed { exit, message: message.into(), remedy: None, source: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn remedy(mut self, text: impl Into<String>) -> Self {
        if let Error::Failed { remedy, .. } = &mut self {
            *remedy = Some(text.into());
        }
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        if let Error::Failed { source, .. } = &mut self {
            *source = Some(cause.into());
        }
        self
    }

    /// The code to end with.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Config(mistakes) if mistakes.unreadable() => Exit::NoInput,
            Error::Config(_) => Exit::Config,
            Error::Failed { exit, .. } => *exit,
        }
    }

    /// For people: the message, its causes, the remedy.
    pub fn human(&self, color: bool) -> String {
        let (remedy, mut text) = match self {
            Error::Config(mistakes) => return mistakes.render(color),
            Error::Failed { remedy, message, .. } => (remedy, format!("error: {message}\n")),
        };
        for cause in self.causes() {
            text.push_str(&format!("  because: {cause}\n"));
        }
        if let Some(remedy) = remedy {
            text.push_str(&format!("  help: {remedy}\n"));
        }
        text
    }

    /// For scripts: `{"error": {code, exit, message, causes, remedy}}`, or the list of the config's mistakes.
    pub fn json(&self) -> serde_json::Value {
        match self {
            Error::Config(mistakes) => json!({ "error": {
                "code": self.exit(), "exit": self.exit().code(), "message": self.to_string(), "mistakes": mistakes,
            }}),
            Error::Failed { exit, message, remedy, .. } => json!({ "error": {
                "code": exit, "exit": exit.code(), "message": message, "causes": self.causes(), "remedy": remedy,
            }}),
        }
    }

    fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        causes
    }
}

/// Writing to the terminal or a pipe failed.
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::new(Exit::Os, "cannot write the answer").because(error)
    }
}
