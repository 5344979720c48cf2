//! Medians, ratios, the Markdown table and the SVG plot, whatever was measured on whatever servers.

use std::collections::BTreeMap;

use crate::metric::Metric;
use crate::servers::Kind;

/// Values by metric and server, one for each round, in order.
#[derive(Default)]
pub(crate) struct Results(BTreeMap<(Metric, &'static str), Vec<f64>>);

impl Results {
    pub(crate) fn add(&mut self, metric: Metric, kind: Kind, value: f64) {
        self.0.entry((metric, kind.name())).or_default().push(value);
    }

    fn values(&self, metric: Metric, kind: Kind) -> &[f64] {
        self.0.get(&(metric, kind.name())).map_or(&[], Vec::as_slice)
    }

    /// The median of the ratios taken within each round.
    pub(crate) fn ratio(&self, over: (Metric, Kind), under: (Metric, Kind)) -> Option<f64> {
        let pairs = self.values(over.0, over.1).iter().zip(self.values(under.0, under.1));
        median(&pairs.filter(|(_, under)| **under > 0.0).map(|(a, b)| a / b).collect::<Vec<_>>())
    }
}

/// A Markdown table: medians, and adit's ratio to each rival. For a rate more than 1 is better, for
/// time and memory less.
pub(crate) fn table(results: &Results, kinds: &[Kind]) -> String {
    let rivals: Vec<Kind> = if kinds.contains(&Kind::Adit) {
        kinds.iter().copied().filter(|kind| *kind != Kind::Adit).collect()
    } else {
        Vec::new()
    };
    let mut text = String::from("|");
    for kind in kinds {
        text += &format!(" | {}", kind.name());
    }
    for rival in &rivals {
        text += &format!(" | adit / {}", rival.name());
    }
    text += " |\n|---";
    text += &"|---:".repeat(kinds.len() + rivals.len());
    text += "|\n";
    for metric in Metric::ALL {
        if kinds.iter().all(|kind| results.values(metric, *kind).is_empty()) {
            continue;
        }
        text += &format!("| {}", metric.label());
        for kind in kinds {
            let cell = median(results.values(metric, *kind)).map_or("–".to_owned(), figure);
            text += &format!(" | {cell}");
        }
        for rival in &rivals {
            let ratio = results.ratio((metric, Kind::Adit), (metric, *rival));
            let cell = ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}×"));
            text += &format!(" | {cell}");
        }
        text += " |\n";
    }
    text
}

/// Small panels, one for each metric with its own scale: a bar for the median, a whisker from the
/// worst to the best round. It follows the reader's light or dark scheme.
pub(crate) fn plot(results: &Results, kinds: &[Kind]) -> String {
    const PANEL: (usize, usize) = (280, 210);
    const BAR_AREA: f64 = 120.0;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 840 420\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<style>\n\
         text { fill: #24292f } .dim { fill: #57606a }\n\
         .base, .whisker { stroke: #57606a; stroke-width: 1 }\n\
         .adit { fill: #1a7f64 } .rival { fill: #afb8c1 }\n\
         @media (prefers-color-scheme: dark) {\n\
         text { fill: #e6edf3 } .dim { fill: #9198a1 }\n\
         .base, .whisker { stroke: #9198a1 }\n\
         .adit { fill: #3fb68f } .rival { fill: #545d68 }\n}\n</style>\n",
    );
    for (index, metric) in Metric::PLOTTED.into_iter().enumerate() {
        let (x, y) = (PANEL.0 * (index % 3), PANEL.1 * (index / 3));
        let better = if metric.more_is_better() { "more is better" } else { "less is better" };
        svg += &format!(
            "<g transform=\"translate({x} {y})\">\n<text x=\"16\" y=\"22\" \
             font-weight=\"600\">{}</text>\n<text class=\"dim\" x=\"16\" y=\"38\" \
             font-size=\"11\">{better}</text>\n",
            metric.label(),
        );
        let highest =
            |kind: &Kind| results.values(metric, *kind).iter().copied().fold(0.0, f64::max);
        let top = kinds.iter().map(highest).fold(f64::MIN_POSITIVE, f64::max);
        let floor = 60.0 + BAR_AREA;
        let step = 248.0 / kinds.len() as f64;
        for (place, kind) in kinds.iter().enumerate() {
            let values = results.values(metric, *kind);
            let Some(middle) = median(values) else { continue };
            let height = |value: f64| (value.max(0.0) / top * BAR_AREA).max(0.5);
            let width = step * 0.62;
            let left = 16.0 + step * (place as f64 + 0.19);
            let centre = left + width / 2.0;
            let class = if *kind == Kind::Adit { "adit" } else { "rival" };
            let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
            let (low, high) = (floor - height(lowest), floor - height(highest(kind)));
            svg += &format!(
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" \
                 height=\"{:.1}\" rx=\"2\"/>\n\
                 <line class=\"whisker\" x1=\"{centre:.1}\" x2=\"{centre:.1}\" y1=\"{low:.1}\" \
                 y2=\"{high:.1}\"/>\n\
                 <text x=\"{centre:.1}\" y=\"{:.1}\" text-anchor=\"middle\" \
                 font-size=\"11\">{}</text>\n\
                 <text class=\"dim\" x=\"{centre:.1}\" y=\"{:.1}\" \
                 text-anchor=\"middle\">{}</text>\n",
                floor - height(middle),
                height(middle),
                high - 5.0,
                figure(middle),
                floor + 16.0,
                kind.name(),
            );
        }
        svg += &format!(
            "<line class=\"base\" x1=\"16\" x2=\"264\" y1=\"{floor}\" y2=\"{floor}\"/>\n</g>\n"
        );
    }
    svg += "</svg>\n";
    svg
}

/// Three significant digits, or all before the point.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (upper, lower) = (sorted.len() / 2, sorted.len().checked_sub(1)? / 2);
    Some(f64::midpoint(*sorted.get(lower)?, *sorted.get(upper)?))
}
