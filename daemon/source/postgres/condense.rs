//! A message of the stream that is too large to be held whole, taken apart while it is read: what nobody wants of it is never gathered.
//!
//! Messages of others (`pg_logical_emit_message` takes a gigabyte from anybody) and columns that no mapping reads are passed over;
//! values beyond their bound are replaced by their length ([`LEFT_OUT`]), so that their row is still told of, by name (INV-8, INV-14).

use super::transaction::Consumer;
use super::wire::DecodeError;
use super::wire::pgoutput::LEFT_OUT;

/// What is gathered of a message of a kind that has no columns: names and numbers of relations, types and origins.
const GATHERED_BYTES: usize = 16 << 20;

/// What comes next in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The header of `XLogData`, and the message's tag.
    Head,
    /// The relation.
    Relation,
    /// `N`, `K` or `O`.
    Tuple,
    /// How many columns.
    Count,
    /// The kind of a column.
    Kind,
    /// The length of a column of this kind.
    Length(u8),
    /// So much of a value, which is kept or not.
    Value(usize, bool),
    /// All the rest, which is kept or not.
    Rest(bool),
}

/// See the module's text.
#[derive(Debug)]
pub struct Condenser {
    step: Step,
    /// Bytes of the message that have not come yet.
    left: usize,
    /// Beginning of a field that has come in part.
    held: Vec<u8>,
    out: Vec<u8>,
    relation: u32,
    columns: u16,
    column: u16,
    /// Bytes of the values of the tuple that are kept.
    kept: usize,
    dropped: bool,
}

impl Condenser {
    /// For a `CopyData` message of so many bytes.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let (held, out) = (Vec::new(), Vec::new());
        let (relation, columns, column, kept) = (0, 0, 0, 0);
        Self { step: Step::Head, left: length, held, out, relation, columns, column, kept, dropped: false }
    }

    /// All of it has come.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// What is left of the message; `None` when nobody wants any of it.
    #[must_use]
    pub fn finish(self) -> Option<Vec<u8>> {
        (!self.dropped).then_some(self.out)
    }

    /// Takes what has come of the message; gives how many of the bytes belonged to it.
    pub fn feed(&mut self, bytes: &[u8], consumer: &impl Consumer) -> Result<usize, DecodeError> {
        let mine = bytes.get(..bytes.len().min(self.left)).unwrap_or_default();
        let mut rest = mine;
        while !rest.is_empty() {
            let before = rest.len();
            self.step(&mut rest, consumer)?;
            self.left -= before - rest.len();
        }
        Ok(mine.len())
    }

    fn step(&mut self, rest: &mut &[u8], consumer: &impl Consumer) -> Result<(), DecodeError> {
        let needed = match self.step {
            Step::Head => 26,
            Step::Relation | Step::Length(_) => 4,
            Step::Tuple | Step::Kind => 1,
            Step::Count => 2,
            Step::Value(length, keep) => {
                let count = self.pass(rest, length, keep)?;
                self.step = Step::Value(length - count, keep);
                if count == length {
                    self.next_column();
                }
                return Ok(());
            }
            Step::Rest(keep) => return self.pass(rest, usize::MAX, keep).map(|_| ()),
        };
        let count = rest.len().min(needed - self.held.len());
        let (field, after) = rest.split_at(count);
        self.held.extend_from_slice(field);
        *rest = after;
        if self.held.len() == needed {
            let field = std::mem::take(&mut self.held);
            self.field(&field, consumer);
        }
        Ok(())
    }

    /// Passes some bytes on, or over; gives how many.
    fn pass(&mut self, rest: &mut &[u8], most: usize, keep: bool) -> Result<usize, DecodeError> {
        let count = rest.len().min(most);
        let (bytes, after) = rest.split_at(count);
        *rest = after;
        if keep {
            self.out.extend_from_slice(bytes);
        }
        if most == usize::MAX && self.out.len() > GATHERED_BYTES {
            let length = i64::try_from(self.out.len()).unwrap_or(i64::MAX);
            return Err(DecodeError::BadLength { message: "frame", field: "length", length });
        }
        Ok(count)
    }

    fn field(&mut self, field: &[u8], consumer: &impl Consumer) {
        let number = field.iter().fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
        let last = field.last().copied().unwrap_or_default();
        self.step = match self.step {
            Step::Head => {
                self.out.push(last);
                match last {
                    b'I' | b'U' | b'D' => Step::Relation,
                    b'M' => {
                        self.dropped = true;
                        Step::Rest(false)
                    }
                    _ => Step::Rest(true),
                }
            }
            Step::Relation => {
                self.relation = number;
                self.out.extend_from_slice(field);
                Step::Tuple
            }
            Step::Tuple => {
                self.out.push(last);
                (self.column, self.kept) = (0, 0);
                Step::Count
            }
            Step::Count => {
                self.columns = u16::try_from(number).unwrap_or(u16::MAX);
                self.out.extend_from_slice(field);
                if self.columns == 0 { Step::Tuple } else { Step::Kind }
            }
            Step::Kind if matches!(last, b't' | b'b') => Step::Length(last),
            Step::Kind => {
                self.out.push(last);
                // What the protocol does not know is found out when the message is decoded.
                if !matches!(last, b'n' | b'u') {
                    self.step = Step::Rest(true);
                    return;
                }
                return self.next_column();
            }
            Step::Length(kind) => self.length(kind, number, consumer),
            step @ (Step::Value(..) | Step::Rest(_)) => step,
        };
        if self.step == Step::Value(0, true) {
            self.next_column();
        }
    }

    fn length(&mut self, kind: u8, length: u32, consumer: &impl Consumer) -> Step {
        let (most, of_row) = consumer.most_bytes(self.relation, usize::from(self.column));
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        let keep = size <= most && self.kept.saturating_add(size) <= of_row;
        if keep {
            self.kept += size;
            self.out.push(kind);
            self.out.extend_from_slice(&length.to_be_bytes());
        } else {
            self.out.push(LEFT_OUT);
            self.out.extend_from_slice(&u64::from(length).to_be_bytes());
        }
        Step::Value(size, keep)
    }

    fn next_column(&mut self) {
        self.column = self.column.saturating_add(1);
        self.step = if self.column < self.columns { Step::Kind } else { Step::Tuple };
    }
}
