//! Row images: the mapped columns of a row, whole or as a change sent them.

use std::sync::Arc;

use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value};

/// Column of a row in which it stands what was left out of it, and why; no mapping can name it.
pub const LEFT_OUT: &str = "@left_out";

/// Column names in the order of their bytes, each once; shared by the rows of a table.
pub type Columns = Arc<[Arc<str>]>;

/// The mapped columns of a row. Numbers that JSON cannot hold exactly are strings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    columns: Columns,
    /// One for each column.
    values: Vec<Value>,
}

impl Row {
    /// A row with these values, one for each of `columns`.
    #[must_use]
    pub fn new(columns: Columns, mut values: Vec<Value>) -> Self {
        debug_assert!(columns.is_sorted());
        values.resize(columns.len(), Value::Null);
        Self { columns, values }
    }

    /// A row as it was stored. `like`: columns of an earlier row, shared if they are the same, and renewed if not.
    #[must_use]
    pub fn from_map(map: Map<String, Value>, like: &mut Columns) -> Self {
        if !like.iter().map(|name| &**name).eq(map.keys().map(String::as_str)) {
            let mut names: Vec<Arc<str>> = map.keys().map(|name| name.as_str().into()).collect();
            names.sort_unstable();
            *like = names.into();
        }
        // The keys of a map come in the order of their bytes.
        Self::new(like.clone(), map.into_iter().map(|(_, value)| value).collect())
    }

    /// The value of `column`; `None` when the row has no such column.
    #[must_use]
    pub fn get(&self, column: &str) -> Option<&Value> {
        let place = self.columns.binary_search_by(|name| (**name).cmp(column)).ok()?;
        self.values.get(place)
    }

    /// The row without the columns at these places; `why` says what is wrong with them.
    #[must_use]
    pub fn without(&self, places: &[usize], why: &str) -> Self {
        let kept = self.iter().enumerate().filter(|(place, _)| !places.contains(place));
        let kept = kept.map(|(_, (name, value))| (name.clone(), value.clone()));
        kept.chain([(LEFT_OUT.into(), Value::from(why))]).collect()
    }

    /// What was left out of it, and why.
    #[must_use]
    pub fn left_out(&self) -> Option<&str> {
        self.get(LEFT_OUT)?.as_str()
    }

    /// Columns with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Value)> {
        self.columns.iter().zip(&self.values)
    }
}

impl FromIterator<(Arc<str>, Value)> for Row {
    fn from_iter<T: IntoIterator<Item = (Arc<str>, Value)>>(pairs: T) -> Self {
        let mut pairs: Vec<(Arc<str>, Value)> = pairs.into_iter().collect();
        pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let (columns, values): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        Self::new(columns.into(), values)
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(name, value)| (&**name, value)))
    }
}

/// A column as a change sent it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Field<'a> {
    /// The new value, possibly null.
    Value(&'a Value),
    /// Stored out of line and not touched: PostgreSQL did not send it (INV-7). Never null.
    Unchanged,
}

/// The mapped columns of a row as they were sent. A mapped column that the table no longer has is not among them.
#[derive(Debug, Clone, PartialEq)]
pub struct SentRow {
    /// What stands here for columns that were not sent means nothing.
    row: Arc<Row>,
    /// Places of the columns that were not sent.
    unsent: Vec<usize>,
}

impl SentRow {
    /// A row of which the columns at `unsent` did not come.
    #[must_use]
    pub fn new(row: Row, unsent: Vec<usize>) -> Self {
        Self { row: Arc::new(row), unsent }
    }

    /// The row without the columns at these places; `why` says what is wrong with them.
    #[must_use]
    pub fn without(&self, places: &[usize], why: &str) -> Self {
        let row = self.row.without(places, why);
        let name = |place: &usize| self.row.columns.get(*place).filter(|_| !places.contains(place));
        let unsent = self.unsent.iter().filter_map(name);
        let unsent = unsent.filter_map(|name| row.columns.binary_search(name).ok()).collect();
        Self::new(row, unsent)
    }

    /// The row itself, when all of it was sent.
    #[must_use]
    pub fn whole(&self) -> Option<&Arc<Row>> {
        self.unsent.is_empty().then_some(&self.row)
    }

    /// Columns with what was sent for them.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, Field<'_>)> {
        self.row.iter().enumerate().map(|(place, (name, value))| {
            let field = if self.unsent.contains(&place) { Field::Unchanged } else { Field::Value(value) };
            (name, field)
        })
    }

    /// Only the columns that were sent.
    #[must_use]
    pub fn sent(&self) -> Row {
        let value = |(name, field): (&Arc<str>, Field<'_>)| match field {
            Field::Value(value) => Some((name.clone(), value.clone())),
            Field::Unchanged => None,
        };
        self.iter().filter_map(value).collect()
    }

    /// What was sent for `column`.
    #[must_use]
    pub fn get(&self, column: &str) -> Option<Field<'_>> {
        self.iter().find(|(name, _)| &***name == column).map(|(_, field)| field)
    }

    /// True when a column was not sent because it is TOASTed and unchanged.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// How many columns were not sent.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Takes the columns it does not carry from `earlier`.
    pub fn fill_from(&mut self, earlier: &Self) {
        for place in std::mem::take(&mut self.unsent) {
            let Some(name) = self.row.columns.get(place) else { continue };
            if let Some(Field::Value(known)) = earlier.get(name)
                && let Some(value) = Arc::make_mut(&mut self.row).values.get_mut(place)
            {
                *value = known.clone();
            } else {
                self.unsent.push(place);
            }
        }
    }
}

impl From<Row> for SentRow {
    fn from(row: Row) -> Self {
        Self::new(row, Vec::new())
    }
}
