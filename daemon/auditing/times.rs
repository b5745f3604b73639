//! Times as auditors write and read them: UTC, and their own zone.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::app::EX_USAGE;
use crate::cli::ReadingArgs;
use crate::operate::Refusal;

/// See the module's text.
pub struct Times(TimeZone);

impl Times {
    /// In the zone that was asked for, or that of this machine.
    pub fn of(args: &ReadingArgs) -> Result<Self, Refusal> {
        let Some(name) = &args.zone else { return Ok(Self(TimeZone::system())) };
        let zone = TimeZone::get(name);
        zone.map(Self)
            .map_err(|_| Refusal(EX_USAGE, format!("`{name}` is not a zone, such as Europe/Brussels")))
    }

    /// Reads `2026-11-24`, `2026-11-24 10:00` in the zone, or an instant with its offset.
    pub fn parse(&self, text: &str) -> Result<Timestamp, Refusal> {
        if let Ok(instant) = text.parse::<Timestamp>() {
            return Ok(instant);
        }
        let civil: Result<DateTime, _> = text.parse();
        let at = civil.and_then(|civil| civil.to_zoned(self.0.clone())).map(|zoned| zoned.timestamp());
        at.map_err(|_| {
            let next = "next: 2026-11-24, \"2026-11-24 10:00\", or 2026-11-24T10:00:00Z";
            Refusal(EX_USAGE, format!("`{text}` is not a time\n{next}"))
        })
    }

    /// UTC, and the zone where that is another one.
    pub fn show(&self, at: Timestamp) -> String {
        let zoned = at.to_zoned(self.0.clone());
        if zoned.offset().is_zero() {
            return at.to_string();
        }
        format!("{at} ({})", zoned.strftime("%F %T %Z"))
    }

    /// The same of a time as the database writes it.
    pub fn show_text(&self, text: &str) -> String {
        text.parse().map_or_else(|_| text.to_owned(), |at| self.show(at))
    }
}
