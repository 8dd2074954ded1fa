//! One line of `swapserve doctor`: what was looked at, how it is, and what to do about it.

use serde::Serialize;
use std::borrow::Cow;

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A run works, with less speed or a weaker guarantee.
    Warn,
    /// A run does not work.
    Fail,
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The thing, in a word or two: `open files`.
    pub name: Cow<'static, str>,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen, and what follows from it.
    pub what: String,
    /// What to do, by the user or the site; nothing where all is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(name: impl Into<Cow<'static, str>>, what: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Ok, what: what.into(), remedy: None }
    }

    /// A run works, but not as well as it could.
    pub fn warn(
        name: impl Into<Cow<'static, str>>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), verdict: Verdict::Warn, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// A run does not work.
    pub fn fail(
        name: impl Into<Cow<'static, str>>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), verdict: Verdict::Fail, what: what.into(), remedy: Some(remedy.into()) }
    }
}
