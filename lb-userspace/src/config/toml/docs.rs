//! The tables of keys in the documentation.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::keys::DOCUMENTED;

/// What ends a table.
const END: &str = "<!-- end of keys -->";

/// `text`, which is Markdown, with every table of keys as it is declared. One stands between `<!-- keys of HEADER -->` and
/// `<!-- end of keys -->`, for example of `[[pool]]`. An error is the header of a table that `text` lacks.
pub fn with_tables_of_keys(text: &str) -> Result<String, &'static str> {
    let mut text = text.to_owned();
    for table in DOCUMENTED {
        let begin = format!("<!-- keys of {} -->\n", table.header);
        let start = text.find(&begin).ok_or(table.header)? + begin.len();
        let length = text[start..].find(END).ok_or(table.header)?;
        text.replace_range(start..start + length, &table.documentation());
    }
    Ok(text)
}
