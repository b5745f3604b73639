//! Types that are not built in: a domain is written as its base type, an enum as text, an array as its elements.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::value::{Form, Scalar};

/// Numbers below are the server's own types (`FirstNormalObjectId`).
const FIRST_OWN: u32 = 16_384;

/// Forms of the types that a database has of its own.
#[derive(Debug, Clone, Default)]
pub struct Types {
    forms: HashMap<u32, Form>,
    /// The newest type there was when they were read.
    newest: u32,
}

impl Types {
    /// Reads them from the catalogue.
    pub async fn load(client: &Client) -> Result<Self, tokio_postgres::Error> {
        // A domain may stand on a domain, or on an array.
        let sql = "with recursive base as (
                     select oid, oid as base from pg_type where typtype <> 'd' and typtype in ('b', 'e')
                     union all
                     select d.oid, b.base from pg_type d join base b on d.typbasetype = b.oid where d.typtype = 'd')
                   select b.oid, b.base, coalesce(e.base, 0), coalesce(et.typtype, t.typtype) = 'e'
                   from base b join pg_type t on t.oid = b.base
                   left join base e on e.oid = t.typelem and t.typcategory = 'A'
                   left join pg_type et on et.oid = e.base
                   where b.oid >= 16384 or b.base >= 16384";
        let mut forms = HashMap::new();
        for row in client.query(sql, &[]).await? {
            let (oid, base, element): (u32, u32, u32) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let is_enum: bool = row.try_get(3)?;
            let array = element != 0;
            let scalar = if is_enum {
                Scalar::Text
            } else {
                let of = if array { element } else { base };
                Form::built_in(of).map_or(Scalar::Other(of), |form| form.scalar)
            };
            let form = match Form::built_in(base) {
                Some(form) => form,
                None => Form { scalar, array },
            };
            forms.insert(oid, form);
        }
        let newest: u32 = client.query_one("select max(oid) from pg_type", &[]).await?.try_get(0)?;
        Ok(Self { forms, newest })
    }

    /// False for a type that was made since. Numbers of types grow, but for once in four thousand million.
    #[must_use]
    pub fn knows(&self, type_oid: u32) -> bool {
        type_oid < FIRST_OWN || type_oid <= self.newest || self.newest == 0
    }

    /// How values of this type are written; as plain text when the type is not known.
    #[must_use]
    pub fn form(&self, type_oid: u32) -> Form {
        Form::built_in(type_oid)
            .or_else(|| self.forms.get(&type_oid).copied())
            .unwrap_or(Form::of(Scalar::Other(type_oid)))
    }
}
