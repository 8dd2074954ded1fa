//! TOML values to typed ones, each with its place; every mistake is noted and reading goes on.
//!
//! `section!` declares a table of the file once: its keys, their types and their documentation. Reading, the list of
//! known keys and the JSON schema follow from the declaration.

use super::{
    mistake::{Code, Mistake},
    suggest,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use std::{borrow::Cow, ops::Range};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A value and the bytes of the file it stands on.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub span: Range<usize>,
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A type that a TOML value can be read as.
pub(super) trait FromToml: Sized {
    /// What such a value looks like, for «expected …».
    const EXPECTED: &'static str;

    /// Reads the value; `None` after noting what is wrong with it. `place` is the key's full name.
    fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self>;
}

/// Reads a value together with its place.
pub(super) fn read_at<T: FromToml>(
    value: &Spanned<DeValue<'_>>,
    place: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<At<T>> {
    Some(At { value: T::read(value, place, mistakes)?, span: value.span() })
}

/// Notes a value of the wrong type.
pub(super) fn wrong_type<T: FromToml>(
    value: &Spanned<DeValue<'_>>,
    place: &str,
    mistakes: &mut Vec<Mistake>,
) {
    let found = describe(value.get_ref());
    let message = format!("`{place}` is {found}");
    mistakes.push(Mistake::at(value.span(), Code::WrongType, message, format!("expected {}", T::EXPECTED)));
}

/// Notes a value of the right type that means nothing.
pub(super) fn bad_value<T: FromToml>(
    value: &Spanned<DeValue<'_>>,
    place: &str,
    why: &str,
    mistakes: &mut Vec<Mistake>,
) {
    let shown = match value.get_ref() {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.as_str().to_owned(),
        other => describe(other),
    };
    let message = format!("`{place}` cannot be {shown}: {why}");
    mistakes.push(Mistake::at(value.span(), Code::BadValue, message, format!("expected {}", T::EXPECTED)));
}

/// Notes a key that does not exist, with what may be meant.
pub(super) fn unknown_key(
    span: Range<usize>,
    key: &str,
    place: &str,
    known: &[&str],
    mistakes: &mut Vec<Mistake>,
) {
    let home = super::raw::homes(key);
    let help = match suggest::closest(key, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if !home.is_empty() => format!("`{key}` belongs in {}", home.join(" or ")),
        None => format!("the keys here are: {}", known.join(", ")),
    };
    let message = if place.is_empty() {
        format!("there is no section [{key}]")
    } else {
        format!("`{key}` is not a key of [{place}]")
    };
    mistakes.push(Mistake::at(span, Code::UnknownKey, message, help));
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("the string {s:?}"),
        DeValue::Integer(n) => format!("the number {}", n.as_str()),
        DeValue::Float(n) => format!("the number {}", n.as_str()),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(list) if list.is_empty() => "an empty list".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The keys of a table in the order of the file.
pub(super) fn in_order<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(&'a Spanned<toml::de::DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Declares a table of the file.
macro_rules! section {
    ($(#[$meta:meta])* struct $name:ident in $expected:literal { $($(#[$key_meta:meta])* $key:ident: $type:ty,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, schemars::JsonSchema)]
        #[schemars(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$key_meta])* pub $key: Option<At<$type>>,)+
            /// Keys that are given but not understood: they have their mistake, and are not missing.
            #[schemars(skip)]
            pub broken: Vec<&'static str>,
        }

        impl $name {
            /// Every key.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($key)),+];

            /// Takes from `other` what is not given here.
            #[allow(dead_code, reason = "only sections with defaults need it")]
            pub fn or(mut self, other: &Self) -> Self {
                self.broken.extend(&other.broken);
                $name { $($key: self.$key.or_else(|| other.$key.clone()),)+ broken: self.broken }
            }
        }

        impl FromToml for $name {
            const EXPECTED: &'static str = $expected;

            fn read(value: &Spanned<DeValue<'_>>, place: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
                let Some(table) = value.get_ref().as_table() else {
                    wrong_type::<Self>(value, place, mistakes);
                    return None;
                };
                let mut section = Self::default();
                for (name, value) in in_order(table) {
                    let key: &str = name.get_ref();
                    let full = if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") };
                    match key {
                        $(key if key == stringify!($key) => match read_at(value, &full, mistakes) {
                            Some(read) => section.$key = Some(read),
                            None => section.broken.push(stringify!($key)),
                        },)+
                        _ => unknown_key(name.span(), key, place, Self::KEYS, mistakes),
                    }
                }
                Some(section)
            }
        }
    };
}
pub(super) use section;
