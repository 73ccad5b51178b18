//! What a run found: every sample as JSON, medians and paired ratios as Markdown, charts.

mod chart;
mod compare;
mod data;
#[cfg(test)]
mod example;
mod markdown;
mod numbers;
mod picture;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

pub(crate) use compare::compare;
pub(crate) use data::{BARE, Better, Metric, Report, Row, Sample, Table};
pub(crate) use markdown::sample_line;

impl Report {
    /// Writes `NAME.json`, `NAME.md` and the charts; returns the Markdown.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> Result<String> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let write = |file: String, text: &str| {
            let path = dir.join(file);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        let markdown = self.markdown(name);
        write(format!("{name}.json"), &(serde_json::to_string_pretty(self)? + "\n"))?;
        write(format!("{name}.md"), &markdown)?;
        for scenario in self.scenarios() {
            write(chart::file(name, scenario), &chart::scenario(self, scenario))?;
        }
        if let Some(picture) = picture::picture(self) {
            write(picture::file(name), &picture)?;
        }
        Ok(markdown)
    }
}
