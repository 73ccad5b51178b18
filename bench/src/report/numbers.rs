//! Medians, and how figures are written.

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

pub(super) fn lowest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

pub(super) fn highest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// "median (lowest to highest)".
pub(super) fn spread(values: Vec<f64>, show: fn(f64) -> String) -> String {
    let (from, to) = (show(lowest(&values)), show(highest(&values)));
    match values.len() {
        0 => "–".to_owned(),
        _ if from == to => from,
        _ => format!("{} ({from} to {to})", show(median(values))),
    }
}

pub(super) fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// Three significant digits or more, thousands set apart.
pub(super) fn quantity(value: f64) -> String {
    match value.abs() {
        v if v < 1e4 && v.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 9_999.5 => {
            let digits = format!("{:.0}", v);
            let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
            format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(" "))
        }
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.0995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn figures_keep_three_digits() {
        let shown =
            [0.0, 8.0, 0.012_34, 1.234, 12.34, 123.4, 1234.0, 9_999.7, 12_345.6, 1_234_567.0].map(quantity);
        assert_eq!(
            shown,
            ["0", "8", "0.012", "1.23", "12.3", "123", "1234", "10 000", "12 346", "1 234 567"]
        );
    }
}
