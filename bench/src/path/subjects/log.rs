//! What a subject says.

/// The distinct lines that look like trouble, at most a few.
pub(super) fn complaints(output: &str) -> Vec<String> {
    const SIGNS: &[&str] = &["warn", "error", "alert", "crit", "emerg", "panic", "fatal"];
    let mut found: Vec<String> = Vec::new();
    // iperf3's server ends its connections with a reset.
    for line in output.lines().filter(|line| !line.contains("reset by peer")) {
        // Without the time in front of it, so that what is said twice is the same.
        let line = line
            .split_once("Z ")
            .filter(|(time, _)| time.starts_with(|c: char| c.is_ascii_digit()) && !time.contains(' '))
            .map_or(line, |(_, rest)| rest.trim());
        let lower = line.to_lowercase();
        if SIGNS.iter().any(|sign| lower.contains(sign)) && !found.iter().any(|known| known == line) {
            found.push(line.chars().filter(|c| !c.is_control()).take(300).collect());
        }
        if found.len() == 5 {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_the_distinct_lines_of_trouble() {
        let log = "starting\n[WARNING] limits\n[WARNING] limits\nthread panicked\n\
                   2026-01-01T00:00:00.1Z  WARN a limit\n2026-01-01T00:00:00.2Z  WARN a limit\n";
        assert_eq!(complaints(log), ["[WARNING] limits", "thread panicked", "WARN a limit"]);
    }
}
