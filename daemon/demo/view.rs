//! The terminal: a few lines of figures that are redrawn, and below them the last changes. Without a terminal, plain lines.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};

use super::feed::Counts;

/// Changes shown at once.
const SHOWN: usize = 16;

/// See the module's text.
pub struct View {
    live: bool,
    lines: VecDeque<String>,
    drawn: usize,
}

impl View {
    /// Redraws only on a terminal.
    #[must_use]
    pub fn new(plain: bool) -> Self {
        Self { live: !plain && std::io::stdout().is_terminal(), lines: VecDeque::new(), drawn: 0 }
    }

    /// Something about the demo itself.
    pub fn say(&mut self, text: &str) {
        self.add(format!("-- {text}"));
    }

    /// One change that has come to its end.
    pub fn add(&mut self, line: String) {
        if !self.live {
            print(&format!("{line}\n"));
            return;
        }
        self.lines.push_back(line);
        if self.lines.len() > SHOWN {
            self.lines.pop_front();
        }
    }

    /// Draws the figures and the last changes.
    pub fn draw(&mut self, counts: &Counts, row_changes: i64, calls: usize) {
        if !self.live {
            return;
        }
        let mut out = String::new();
        if self.drawn > 0 {
            out.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        let median = median(&counts.lags_ms);
        out.push_str(&format!(
            "\x1b[1mrow changes {row_changes:<6} events {:<6} calls {calls:<6} applied {:<6} setbacks {:<4} median lag {median:.0} ms\x1b[0m\n",
            counts.events, counts.applied, counts.setbacks
        ));
        for line in &self.lines {
            let short: String = line.chars().take(150).collect();
            out.push_str(&short);
            out.push('\n');
        }
        self.drawn = self.lines.len() + 1;
        print(&out);
    }

    /// Ends the live part.
    pub fn end(&mut self) {
        self.live = false;
    }
}

/// The middle value; 0 of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Writes to standard output; a closed pipe is nobody's loss.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
