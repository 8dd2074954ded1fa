//! The kinds of values a key can have: words, sizes, durations, paths, names from a list.

use super::{
    mistake::{Code, Mistake},
    plan::{DisconnectPolicy, Preset, Probe},
    presets,
    reader::{At, FromToml, bad_value, in_order, read_at, wrong_type},
    suggest,
};
use crate::units::{Bytes, MechanismKind};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::{borrow::Cow, net::IpAddr, str::FromStr, time::Duration};
use toml::{Spanned, de::DeValue};

/// Implements the schema of a value type: a name and a JSON schema, always inline.
macro_rules! schema {
    ($type:ty, $name:literal, $($json:tt)+) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($($json)+)
            }
        }
    };
}

impl FromToml for String {
    const EXPECTED: &'static str = "a string";
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let text = value.get_ref().as_str().map(str::to_owned);
        text.or_else(|| {
            wrong_type::<Self>(value, place, mistakes);
            None
        })
    }
}

impl FromToml for bool {
    const EXPECTED: &'static str = "true or false";
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        value.get_ref().as_bool().or_else(|| {
            wrong_type::<Self>(value, place, mistakes);
            None
        })
    }
}

/// A whole number that fits `T`.
macro_rules! whole_number {
    ($type:ty, $expected:literal) => {
        impl FromToml for $type {
            const EXPECTED: &'static str = $expected;
            fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
                let Some(number) = value.get_ref().as_integer() else {
                    wrong_type::<Self>(value, place, mistakes);
                    return None;
                };
                let read = <$type>::from_str_radix(number.as_str(), number.radix());
                read.map_err(|_| bad_value::<Self>(value, place, "it is out of range", mistakes)).ok()
            }
        }
    };
}
whole_number!(u8, "a whole number from 0 to 255");
whole_number!(u16, "a whole number from 0 to 65535");
whole_number!(u32, "a whole number, 0 or more");

/// Reads a string and parses it.
fn parsed<T: FromToml, E: ToString>(
    value: &Spanned<DeValue<'_>>,
    place: &str,
    mistakes: &mut Vec<Mistake>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let Some(text) = value.get_ref().as_str() else {
        wrong_type::<T>(value, place, mistakes);
        return None;
    };
    parse(text).map_err(|why| bad_value::<T>(value, place, &why.to_string(), mistakes)).ok()
}

/// A size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size(pub Bytes);

impl FromToml for Size {
    const EXPECTED: &'static str = "a size in quotes, such as \"24GiB\" (binary) or \"24GB\" (decimal)";
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        parsed(value, place, mistakes, |text| {
            // A bare number would be bytes, which nobody means.
            if text.trim().ends_with(|c: char| c.is_ascii_digit()) {
                return Err("it has no unit");
            }
            let size = text.trim().parse::<bytesize::ByteSize>().map_err(|_| "that is no size")?;
            Ok(Size(Bytes(size.as_u64())))
        })
    }
}
schema!(Size, "Size", {
    "type": "string",
    "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([KkMmGgTtPp]([Ii]?[Bb])?|[Bb])\s*$",
    "examples": ["24GiB", "500MB"],
});

/// A length of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub Duration);

impl FromToml for Time {
    const EXPECTED: &'static str = "a length of time in quotes, such as \"90s\", \"5m\" or \"1h 30m\"";
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        parsed(value, place, mistakes, |text| {
            humantime::parse_duration(text).map(Time).map_err(|_| "that is no length of time")
        })
    }
}
schema!(Time, "Time", {
    "type": "string",
    "pattern": r"^\s*([0-9]+\s*[A-Za-z]+\s*)+$|^0$",
    "examples": ["90s", "5m", "1h 30m"],
});

/// An address to listen on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address(pub IpAddr);

impl FromToml for Address {
    const EXPECTED: &'static str =
        "an IP address, such as \"127.0.0.1\" (this node), \"0.0.0.0\" (every address of the node) or \"::\"";
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        parsed(value, place, mistakes, |text| match text {
            "localhost" => Ok(Address(IpAddr::from([127, 0, 0, 1]))),
            _ => IpAddr::from_str(text).map(Address),
        })
    }
}
schema!(Address, "Address", { "type": "string", "examples": ["127.0.0.1", "0.0.0.0"] });

/// Words of a command: a list, or one string split as a shell splits it (no variables, no globs).
#[derive(Clone, Debug, Default)]
pub(super) struct Words(pub Vec<At<String>>);

impl FromToml for Words {
    const EXPECTED: &'static str =
        "a list of words [\"program\", \"--option\"] or one string \"program --option\"";
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        if let Some(list) = value.get_ref().as_array() {
            let before = mistakes.len();
            let words = list.iter().filter_map(|word| read_at(word, place, mistakes)).collect();
            return (mistakes.len() == before).then_some(Words(words));
        }
        parsed(value, place, mistakes, |text| {
            let words = shell_words::split(&tight(text))?.into_iter();
            Ok::<_, shell_words::ParseError>(Words(
                words.map(|w| At { value: w, span: value.span() }).collect(),
            ))
        })
    }
}
/// A template's blanks do not end a word: `{{ port }}` becomes `{{port}}`.
fn tight(text: &str) -> String {
    let mut parts = text.split("{{");
    let mut tight = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (template, rest) = part.split_once("}}").map_or((part, None), |(t, rest)| (t, Some(rest)));
        tight.push_str("{{");
        tight.extend(template.chars().filter(|c| !c.is_whitespace()));
        if let Some(rest) = rest {
            tight.push_str("}}");
            tight.push_str(rest);
        }
    }
    tight
}

schema!(Words, "Words", { "oneOf": [{ "type": "array", "items": { "type": "string" } }, { "type": "string" }] });

/// A list of names.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(pub Vec<At<String>>);

impl FromToml for Names {
    const EXPECTED: &'static str = "a list of names [\"one\", \"two\"]";
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let Some(list) = value.get_ref().as_array() else {
            wrong_type::<Self>(value, place, mistakes);
            return None;
        };
        Some(Names(list.iter().filter_map(|name| read_at(name, place, mistakes)).collect()))
    }
}
schema!(Names, "Names", { "type": "array", "items": { "type": "string" } });

/// A table of variables.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables(pub Vec<(String, At<String>)>);

impl FromToml for Variables {
    const EXPECTED: &'static str = "a table of strings { NAME = \"value\" }";
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            wrong_type::<Self>(value, place, mistakes);
            return None;
        };
        let mut variables = Vec::new();
        for (name, value) in in_order(table) {
            let key: &str = name.get_ref();
            if key.is_empty() || key.contains(['=', '\0']) {
                let message = format!("`{place}` has a variable named {key:?}");
                mistakes.push(Mistake::at(
                    name.span(),
                    Code::BadValue,
                    message,
                    "a name may not be empty or hold `=`",
                ));
            }
            if let Some(text) = read_at(value, &format!("{place}.{key}"), mistakes) {
                variables.push((key.to_owned(), text));
            }
        }
        Some(Variables(variables))
    }
}
schema!(Variables, "Variables", { "type": "object", "additionalProperties": { "type": "string" } });

/// `"auto"`, one mechanism, or a list of them in the order they are tried.
#[derive(Clone, Debug)]
pub(super) enum Ladder {
    /// The preset's own.
    Auto,
    /// As written.
    Only(Vec<At<MechanismKind>>),
}

impl FromToml for Ladder {
    const EXPECTED: &'static str =
        "\"auto\", one mechanism, or a list of mechanisms in the order to try them";
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let one = |word: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>| {
            let Some(name) = word.get_ref().as_str() else {
                wrong_type::<Self>(word, place, mistakes);
                return None;
            };
            let kind = MechanismKind::ALL.into_iter().find(|kind| kind.name() == name);
            if kind.is_none() {
                mistakes.push(unknown_name(
                    word,
                    Code::UnknownMechanism,
                    "swap mechanism",
                    name,
                    mechanism_names(),
                ));
            }
            Some(At { value: kind?, span: word.span() })
        };
        match value.get_ref() {
            DeValue::String(name) if name == "auto" => Some(Ladder::Auto),
            DeValue::Array(list) if list.is_empty() => {
                bad_value::<Self>(value, place, "it names no mechanism", mistakes);
                None
            }
            DeValue::Array(list) => {
                Some(Ladder::Only(list.iter().filter_map(|word| one(word, mistakes)).collect()))
            }
            _ => one(value, mistakes).map(|kind| Ladder::Only(vec![kind])),
        }
    }
}

impl JsonSchema for Ladder {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Ladder".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = mechanism_names();
        let one: Vec<_> = ["auto"].into_iter().chain(names.iter().copied()).collect();
        json_schema!({ "oneOf": [
            { "type": "string", "enum": one },
            { "type": "array", "items": { "type": "string", "enum": names }, "minItems": 1 },
        ]})
    }
}

fn mechanism_names() -> Vec<&'static str> {
    MechanismKind::ALL.iter().map(|kind| kind.name()).collect()
}

fn unknown_name(
    value: &Spanned<DeValue<'_>>,
    code: Code,
    what: &str,
    name: &str,
    known: Vec<&'static str>,
) -> Mistake {
    let help = match suggest::closest(name, known.iter().copied()) {
        Some(meant) => format!("did you mean {meant:?}? There are: {}", known.join(", ")),
        None => format!("there are: {}", known.join(", ")),
    };
    Mistake::at(value.span(), code, format!("there is no {what} {name:?}"), help)
}

/// A name from a fixed list.
macro_rules! one_of {
    ($type:ty, $code:expr, $what:literal, $names:expr) => {
        impl FromToml for $type {
            const EXPECTED: &'static str = concat!("one ", $what, " by name, in quotes");
            fn read(
                value: &Spanned<DeValue<'_>>,
                place: &str,
                mistakes: &mut Vec<Mistake>,
            ) -> Option<Self> {
                let Some(name) = value.get_ref().as_str() else {
                    wrong_type::<Self>(value, place, mistakes);
                    return None;
                };
                let known: Vec<(&'static str, $type)> = $names;
                let found = known.iter().find(|(n, _)| *n == name).map(|(_, kind)| *kind);
                if found.is_none() {
                    let names = known.iter().map(|(n, _)| *n).collect();
                    mistakes.push(unknown_name(value, $code, $what, name, names));
                }
                found
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                $what.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let known: Vec<(&'static str, $type)> = $names;
                let names: Vec<_> = known.iter().map(|(n, _)| *n).collect();
                json_schema!({ "type": "string", "enum": names })
            }
        }
    };
}
one_of!(Preset, Code::UnknownEngine, "engine", presets::TABLE.iter().map(|f| (f.name, f.preset)).collect());
one_of!(
    DisconnectPolicy,
    Code::BadValue,
    "policy",
    vec![("cancel", DisconnectPolicy::Cancel), ("drain", DisconnectPolicy::Drain),]
);
one_of!(
    Probe,
    Code::BadValue,
    "probe",
    vec![
        ("chat", Probe::Chat),
        ("completion", Probe::Completion),
        ("embedding", Probe::Embedding),
        ("health", Probe::Health),
    ]
);
