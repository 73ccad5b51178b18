//! Times of Envoy.

use crate::import::model::Extra;
use crate::import::values::{duration, timeout};
use crate::import::yaml::Fields;

/// A time as a key of TOML, and Envoy's default where there is none.
pub(super) fn time_or(fields: &Fields<'_>, from: &str, default: &str, key: &'static str) -> Option<Extra> {
    let text = fields.text(from);
    let said = text.map(|text| format!("{from}: {text}")).unwrap_or_default();
    timeout(key, duration(text.unwrap_or(default), "s")?, fields.at(), &said)
}
