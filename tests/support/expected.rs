//! What the targets should hold, asked of Odoo's own tables in plain SQL: independent of the mapping.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::World;

const PARTNERS: &str = "
  select p.id, coalesce(nullif(trim(p.name), ''), p.complete_name), p.active is not false,
         p.is_company is true or p.commercial_partner_id = p.id or (p.commercial_partner_id is null and p.parent_id is null),
         p.commercial_partner_id, p.email, p.phone, p.street, p.street2, p.city, p.zip, coalesce(s.code, s.name), c.code,
         p.ref, p.vat,
         (select array_agg(t.name->>'en_US' order by t.id::text) from res_partner_category t
           join res_partner_res_partner_category_rel r on r.category_id = t.id where r.partner_id = p.id)
  from res_partner p left join res_country c on c.id = p.country_id left join res_country_state s on s.id = p.state_id
  where not exists (select from res_company x where x.partner_id = p.id)
    and not exists (select from res_users x where x.partner_id = p.id and x.share is not true)
    and (p.is_company is true or p.commercial_partner_id = p.id
         or not exists (select from res_company x where x.partner_id = p.commercial_partner_id))";

/// Customers at Stripe, organizations and users at Zendesk, by canonical id, reduced to the fields compared.
#[derive(Debug, Default, PartialEq)]
pub struct Holdings {
    pub customers: BTreeMap<String, Value>,
    pub organizations: BTreeMap<String, Value>,
    pub users: BTreeMap<String, Value>,
}

/// `archived_before`: partners that were archived before the first load.
pub async fn expected(erp: &Client, archived_before: &[i32]) -> Holdings {
    let mut holdings = Holdings::default();
    let rows = erp.query(PARTNERS, &[]).await.unwrap();
    let left_out = |id: i32| {
        archived_before.contains(&id)
            && rows.iter().any(|row| row.get::<_, i32>(0) == id && !row.get::<_, bool>(2))
    };
    for row in &rows {
        let id: i32 = row.get(0);
        if archived_before.contains(&id) && !row.get::<_, bool>(2) {
            continue;
        }
        let text = |index: usize| row.get::<_, Option<String>>(index).filter(|text| !text.is_empty());
        let key = format!("ERP-P-{id}");
        let active: bool = row.get(2);
        if row.get(3) {
            let phone = text(6).filter(|phone| phone.chars().count() <= 20);
            holdings.customers.insert(
                key.clone(),
                json!({"name": text(1), "email": text(5), "phone": phone, "line1": text(7), "line2": text(8),
                       "city": text(9), "postal_code": text(10), "state": text(11), "country": text(12),
                       "reference": text(13), "vat": text(14), "active": active.to_string()}),
            );
            let tags: Vec<String> = row.get::<_, Option<Vec<String>>>(15).unwrap_or_default();
            let tags: Vec<String> = tags.iter().map(|tag| tag.to_lowercase().replace(' ', "_")).collect();
            let archived: &[String] = if active { &[] } else { &["archived".to_owned()] };
            let mut tags = [tags.as_slice(), archived].concat();
            tags.sort();
            holdings.organizations.insert(key, json!({"name": text(1), "tags": tags}));
        } else {
            // A customer that was created nowhere cannot be referred to.
            let customer =
                Some(row.get::<_, i32>(4)).filter(|id| !left_out(*id)).map(|id| format!("ERP-P-{id}"));
            holdings.users.insert(
                key,
                json!({"name": text(1), "email": text(5), "phone": text(6), "organization": customer}),
            );
        }
    }
    holdings
}

/// Partners that are archived now.
pub async fn archived(erp: &Client) -> Vec<i32> {
    let rows = erp.query("select id from res_partner where active is false", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// What the simulated vendors hold, reduced to the same fields.
pub fn held(world: &World) -> Holdings {
    let mut holdings = Holdings::default();
    let text = |value: Option<&Value>| value.cloned().unwrap_or_default();
    for (id, customer) in world.stripe.with(|stripe| stripe.customers()) {
        let address = |key: &str| text(customer.get("address").and_then(|address| address.get(key)));
        let metadata = |key: &str| text(customer.get("metadata").and_then(|metadata| metadata.get(key)));
        holdings.customers.insert(
            id,
            json!({"name": customer["name"], "email": customer["email"], "phone": customer["phone"],
                   "line1": address("line1"), "line2": address("line2"), "city": address("city"),
                   "postal_code": address("postal_code"), "state": address("state"), "country": address("country"),
                   "reference": metadata("reference"), "vat": metadata("vat"), "active": metadata("active")}),
        );
    }
    let organizations = world.zendesk.with(|zendesk| zendesk.organizations());
    let by_zendesk_id: BTreeMap<u64, String> = organizations
        .iter()
        .map(|(external, object)| (object["id"].as_u64().unwrap(), external.clone()))
        .collect();
    for (id, organization) in organizations {
        let mut tags: Vec<Value> = organization["tags"].as_array().cloned().unwrap_or_default();
        tags.sort_by_key(ToString::to_string);
        holdings.organizations.insert(id, json!({"name": organization["name"], "tags": tags}));
    }
    for (id, user) in world.zendesk.with(|zendesk| zendesk.users()) {
        let organization = user["organization_id"].as_u64().and_then(|id| by_zendesk_id.get(&id));
        holdings.users.insert(
            id,
            json!({"name": user["name"], "email": user["email"], "phone": text(user.get("phone")),
                   "organization": organization}),
        );
    }
    holdings
}

/// Fails with the differences, not with two walls of text.
pub fn assert_same(held: &Holdings, expected: &Holdings) {
    let kinds = [
        ("customer", &held.customers, &expected.customers),
        ("organization", &held.organizations, &expected.organizations),
        ("user", &held.users, &expected.users),
    ];
    let mut differences = Vec::new();
    for (kind, held, expected) in kinds {
        for id in held.keys().chain(expected.keys().filter(|id| !held.contains_key(*id))) {
            if held.get(id) != expected.get(id) {
                differences.push(format!(
                    "{kind} {id}:\n  held     {:?}\n  expected {:?}",
                    held.get(id),
                    expected.get(id)
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
