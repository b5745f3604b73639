//! Which deliveries go first.

/// What goes first when not everything can: the numbers of the ledger's column `class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Invoices, payments and what else moves money.
    Money,
    /// What customers may use.
    Entitlement,
    /// Who and what they are.
    Profile,
    /// What was there before.
    Backfill,
}

impl Priority {
    /// All, highest first.
    pub const ALL: [Self; 4] = [Self::Money, Self::Entitlement, Self::Profile, Self::Backfill];

    /// What an event of this type is, unless its route says otherwise: `invoice.v1`.
    #[must_use]
    pub fn of_type(event_type: &str) -> Self {
        match event_type.split('.').next().unwrap_or_default() {
            "invoice" | "credit_note" | "payment" | "refund" | "dispute" => Self::Money,
            "subscription" | "entitlement" => Self::Entitlement,
            _ => Self::Profile,
        }
    }

    /// As the ledger numbers it.
    #[must_use]
    pub fn number(self) -> i16 {
        match self {
            Self::Money => 0,
            Self::Entitlement => 1,
            Self::Profile => 2,
            Self::Backfill => 3,
        }
    }

    /// What the ledger numbers so; what it does not is the least urgent.
    #[must_use]
    pub fn of_number(number: i16) -> Self {
        Self::ALL.into_iter().find(|priority| priority.number() == number).unwrap_or(Self::Backfill)
    }

    /// As files, commands and figures name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Money => "money",
            Self::Entitlement => "entitlement",
            Self::Profile => "profile",
            Self::Backfill => "backfill",
        }
    }
}
