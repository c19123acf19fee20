//! A report as a Markdown table and as a bar chart (SVG), for pages that show it.
//!
//! ```text
//!        1000 ┤
//!         100 ┤ ▐█   ▐    █▐        bars from left to right: ours, then each peer; milliseconds, logarithmic
//!          10 ┤ ▐█  █▐    █▐
//!               Q1   Q2   Q3
//! ```
//!
//! Both say what was measured and how often; a query or peer without a time has no bar. Not here: the table for terminals
//! (`report.rs`).

use super::report::{QueryReport, Report};
use crate::error::{Error, Result};
use std::fmt::Write;
use std::path::Path;

/// Pixels.
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 30.0;
const BAR: f64 = 10.0;
const GAP: f64 = 14.0;
/// Ours, then peers; more of them start again. Told apart by eyes that see no red and green.
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#999999", "#cc79a7"];

impl Report {
    /// Writes [`Self::markdown`].
    ///
    /// # Errors
    /// `File` when the file cannot be written.
    pub fn write_markdown(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.markdown()).map_err(Error::file(path))
    }

    /// Writes [`Self::svg`].
    ///
    /// # Errors
    /// `File` when the file cannot be written.
    pub fn write_chart(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.svg()).map_err(Error::file(path))
    }

    /// A table of medians in milliseconds with the spread of ours, and the geometric means below it.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| query | median ms | min – max | answer |");
        for peer in &self.peers {
            let _ = write!(text, " {} ms | ratio |", cell(peer));
        }
        text.push_str("\n|---|--:|--:|---|");
        text.push_str(&"--:|--:|".repeat(self.peers.len()));
        for query in &self.queries {
            let spread = query.spread;
            let _ = write!(
                text,
                "\n| {} | {:.1} | {:.1} – {:.1} | {} |",
                cell(&query.query),
                spread.median_ms,
                spread.min_ms,
                spread.max_ms,
                answer(query)
            );
            for peer in 0..self.peers.len() {
                match (query.peers.get(peer).copied().flatten(), self.ratio(query, peer)) {
                    (Some(times), Some(ratio)) => {
                        let _ = write!(text, " {:.1} | {ratio:.2} |", times.median_ms);
                    }
                    _ => text.push_str(" – | – |"),
                }
            }
        }
        let _ = write!(
            text,
            "\n| geometric mean | {:.1} | | {} |",
            self.geometric_mean_ms(),
            format_args!("{} of {} right", self.matches(), self.queries.len())
        );
        for ratio in self.ratios() {
            let ratio = ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
            let _ = write!(text, " | {ratio} |");
        }
        let _ = writeln!(text, "\n\n{}", self.caption());
        text
    }

    /// Bars of the medians of all queries, ours and the peers', on a logarithmic scale.
    pub fn svg(&self) -> String {
        let series = 1 + self.peers.len();
        let group = BAR * series as f64 + GAP;
        let width = (LEFT + group * self.queries.len() as f64 + GAP).max(480.0);
        let times = |query: &QueryReport| -> Vec<Option<f64>> {
            let ours = query.difference.is_none().then_some(query.spread.median_ms);
            let peers = (0..self.peers.len()).map(|p| query.peers.get(p).copied().flatten().map(|s| s.median_ms));
            std::iter::once(ours)
                .chain(peers)
                .map(|t| t.filter(|t| *t > 0.0))
                .collect()
        };
        let all: Vec<f64> = self.queries.iter().flat_map(times).flatten().collect();
        // Whole powers of ten around all bars.
        let (least, most) = all
            .iter()
            .fold((f64::INFINITY, 1.0_f64), |(a, b), t| (a.min(*t), b.max(*t)));
        let from = least.min(most).log10().floor();
        let to = most.log10().ceil().max(from + 1.0);
        let y = |ms: f64| TOP + (HEIGHT - TOP - BOTTOM) * (to - ms.log10()) / (to - from);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {HEIGHT:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            escaped(&self.caption())
        );
        for power in from as i32..=to as i32 {
            let (ms, at) = (10f64.powi(power), y(10f64.powi(power)));
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{width:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{ms} ms</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        for (number, query) in self.queries.iter().enumerate() {
            let left = LEFT + GAP / 2.0 + group * number as f64;
            for (place, ms) in times(query).into_iter().enumerate() {
                let Some(ms) = ms else { continue };
                let (top, colour) = (y(ms), COLOURS[place % COLOURS.len()]);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{BAR}\" height=\"{:.1}\" fill=\"{colour}\"><title>{}: {ms:.1} ms</title></rect>",
                    left + BAR * place as f64,
                    (HEIGHT - BOTTOM - top).max(0.0),
                    escaped(self.series(place)),
                );
            }
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
                left + (group - GAP) / 2.0,
                HEIGHT - BOTTOM + 15.0,
                escaped(&query.query)
            );
        }
        for place in 0..series {
            let x = LEFT + 150.0 * place as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.0}\" y=\"12\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{:.0}\" y=\"21\">{}</text>",
                COLOURS[place % COLOURS.len()],
                x + 15.0,
                escaped(self.series(place))
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn series(&self, place: usize) -> &str {
        match place.checked_sub(1).and_then(|peer| self.peers.get(peer)) {
            Some(peer) => peer,
            None => "tessera",
        }
    }

    fn caption(&self) -> String {
        format!(
            "Medians of {} runs, scale {}, {} cores, tessera {}; {}",
            self.runs, self.scale, self.cores, self.version, self.workload
        )
    }
}

fn answer(query: &QueryReport) -> &'static str {
    match (query.matched, &query.difference) {
        (Some(true), _) => "right",
        (Some(false), _) => "wrong",
        (None, Some(_)) => "failed",
        (None, None) => "not checked",
    }
}

/// Without what would end a cell; the address of a peer may hold a password, which [`Report::peers`] leaves out already.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Spread;

    fn report() -> Report {
        let spread = |median_ms: f64| Spread {
            min_ms: median_ms / 2.0,
            median_ms,
            max_ms: median_ms * 2.0,
        };
        let query = |name: &str, ours, peer: Option<f64>| QueryReport {
            query: name.into(),
            rows: 1,
            spread: spread(ours),
            nodes: None,
            strategy: None,
            matched: Some(true),
            difference: None,
            no_oracle: None,
            peers: vec![peer.map(spread)],
            moved: None,
        };
        let mut report = Report::new("a < b", 0.1, 5, vec![], vec!["data|fusion".into()]);
        report.queries = vec![query("1", 20.0, Some(40.0)), query("2", 300.0, None)];
        report
    }

    #[test]
    fn markdown_has_a_row_for_each_query() {
        let text = report().markdown();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "| query | median ms | min – max | answer | data\\|fusion ms | ratio |"
        );
        assert_eq!(lines[2], "| 1 | 20.0 | 10.0 – 40.0 | right | 40.0 | 0.50 |");
        assert_eq!(lines[3], "| 2 | 300.0 | 150.0 – 600.0 | right | – | – |");
        assert_eq!(lines[4], "| geometric mean | 77.5 | | 2 of 2 right | | 0.50 |");
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        assert!(
            lines[..5].iter().all(|line| columns(line) == columns(lines[0])),
            "{text}"
        );
    }

    #[test]
    fn bars_stand_on_the_axis_and_are_as_high_as_their_time() {
        let svg = report().svg();
        let number = |line: &str, name: &str| -> f64 {
            let from = line.find(&format!("{name}=\"")).expect(name) + name.len() + 2;
            line[from..]
                .split('"')
                .next()
                .and_then(|n| n.parse().ok())
                .expect("a number")
        };
        let bars: Vec<_> = svg.lines().filter(|line| line.contains(" ms</title>")).collect();
        assert_eq!(bars.len(), 3, "{svg}");
        for bar in &bars {
            assert!(
                (number(bar, " y") + number(bar, " height") - (HEIGHT - BOTTOM)).abs() < 0.2,
                "{bar}"
            );
        }
        // From 10 to 1,000 ms: 20 is 0.30 of a decade above the axis, 40 is 0.60, 300 is 1.48.
        let decade = (HEIGHT - TOP - BOTTOM) / 2.0;
        for (bar, height) in bars.iter().zip([2.0_f64, 4.0, 30.0].map(f64::log10)) {
            assert!((number(bar, " height") - height * decade).abs() < 0.2, "{bar}");
        }
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
    }
}
