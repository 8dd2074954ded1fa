//! Every name that a request can ask for means one model.

use crate::config::{
    mistake::{Code, Mistake},
    raw::File,
};
use std::{collections::HashMap, ops::Range};

pub(super) fn check(file: &File, mistakes: &mut Vec<Mistake>) {
    let mut taken: HashMap<&str, (&str, Range<usize>)> = HashMap::new();
    for (name, model) in file.models.iter().flat_map(|models| &models.value.0) {
        let aliases = model.aliases.iter().flat_map(|at| &at.value.0);
        for word in [name].into_iter().chain(aliases) {
            if !word.value.chars().all(|c| c.is_ascii_alphanumeric() || "._-:/@+".contains(c))
                || word.value.is_empty()
            {
                let message = format!("{:?} cannot be the name of a model", word.value);
                let help = "use letters, digits and . _ - : / @ +";
                mistakes.push(Mistake::at(word.span.clone(), Code::BadValue, message, help));
            }
            if let Some((owner, place)) = taken.get(word.value.as_str()) {
                let message = format!("{:?} names two models: {owner} and {}", word.value, name.value);
                let help = "a request could mean either; rename one of them";
                let mistake = Mistake::at(word.span.clone(), Code::DuplicateName, message, help);
                mistakes.push(mistake.label("again here").and(place.clone(), "first here"));
            } else {
                taken.insert(&word.value, (&name.value, word.span.clone()));
            }
        }
    }
}
