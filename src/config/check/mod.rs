//! What can be known before anything starts. Each check notes what it finds; none stops another.
//!
//! | file | what it asks |
//! | --- | --- |
//! | `names` | does each name mean one model? |
//! | `keys` | do the keys of a model, and their values, go together? |
//! | `commands` | can every template be filled; are the programs and files there? |
//! | `capacity` | can it ever fit into the job? |
//! | `endpoint` | can the address be listened on? |

mod capacity;
mod commands;
mod endpoint;
mod keys;
mod names;

use super::{
    Context,
    mistake::{Code, Mistake},
    raw::File,
    resolve::Draft,
};

/// Every check.
pub(super) fn all(file: &File, drafts: &[Draft], context: &Context, mistakes: &mut Vec<Mistake>) {
    // Where keys or sections were not understood, the models may be among them.
    if mistakes.is_empty() && file.models.as_ref().is_none_or(|models| models.value.0.is_empty()) {
        let help = "describe one: [models.chat], engine = \"vllm\", model = \"/path/to/weights\"";
        mistakes.push(Mistake::whole(Code::NoModels, "the config describes no model", help));
    }
    names::check(file, mistakes);
    keys::sections(file, mistakes);
    for draft in drafts {
        keys::model(draft, mistakes);
        commands::check(draft, mistakes);
    }
    capacity::check(file, drafts, context.limits.as_ref(), mistakes);
    if context.elsewhere {
        mistakes.retain(|mistake| !matches!(mistake.code, Code::MissingProgram | Code::MissingPath));
    } else {
        endpoint::check(file, context, mistakes);
    }
}
