//! What a tool says before its load begins.

use std::io::Write;

use anyhow::Result;

/// Tells who started a tool that its connections are open.
pub(super) fn ready() -> Result<()> {
    println!("ready");
    Ok(std::io::stdout().flush()?)
}
