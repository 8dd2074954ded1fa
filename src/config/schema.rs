//! The JSON schema of `models.toml`, for editors; kept in `docs/models.schema.json`.

use super::raw::File;

/// The schema, as text.
pub fn text() -> String {
    let schema = schemars::schema_for!(File);
    serde_json::to_string_pretty(&schema).expect("a schema has no keys but strings") + "\n"
}
