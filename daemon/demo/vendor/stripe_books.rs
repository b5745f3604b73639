//! What a simulated Stripe keeps beside customers: charges, refunds, disputes, invoices, subscriptions. People and Stripe itself change
//! them; tailwater reads them. <https://docs.stripe.com/api>

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::event_log::EventLog;
use super::{Incoming, Reply};

/// See the module's text.
#[derive(Debug, Default)]
pub struct Books {
    /// Objects by kind in the plural, as it stands in paths, and by id.
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    /// What happened.
    pub events: EventLog,
    /// In all ids, so that those of two accounts differ.
    pub tag: String,
    /// Beginning of what the key may not read, below `/v1/`.
    pub forbidden: Option<&'static str>,
    /// An object that lists do not show, as one that was made while they were read.
    pub unlisted: Option<String>,
    next: u64,
}

/// A subscription's price, as far as it matters.
#[derive(Debug, Clone, Copy)]
pub struct Price<'a> {
    /// `support_gold`.
    pub lookup_key: &'a str,
    /// In the smallest unit, per month.
    pub amount: u64,
    /// Support plan, in the price's metadata.
    pub plan: &'a str,
    /// Within how many minutes a case is answered, in the price's metadata.
    pub first_response_minutes: u32,
}

impl Books {
    fn add(&mut self, plural: &'static str, prefix: &str, event: &str, mut object: Value) -> String {
        self.next += 1;
        let id = format!("{prefix}_{}{:08}", self.tag, self.next);
        if let Value::Object(map) = &mut object {
            map.insert("id".into(), id.clone().into());
            map.entry("created").or_insert_with(|| self.events.now_s().into());
        }
        self.events.note(event, &object);
        self.objects.entry(plural).or_default().insert(id.clone(), object);
        id
    }

    /// Changes some members of an object; what happened is called `event`.
    pub fn change(&mut self, plural: &'static str, id: &str, event: &str, members: Value) {
        let object = self.objects.get_mut(plural).and_then(|objects| objects.get_mut(id));
        if let (Some(Value::Object(object)), Value::Object(members)) = (object, members) {
            object.extend(members);
            let object = Value::Object(object.clone());
            self.events.note(event, &object);
        }
    }

    /// Objects of a kind by id.
    #[must_use]
    pub fn of(&self, plural: &str) -> Map<String, Value> {
        let objects = self.objects.get(plural).into_iter().flatten();
        objects.map(|(id, object)| (id.clone(), object.clone())).collect()
    }

    /// Somebody pays, or tries to. `document`: what of ours it is for.
    pub fn charge(
        &mut self,
        customer: &str,
        (amount, currency): (u64, &str),
        paid: bool,
        document: &str,
    ) -> String {
        let (status, event) =
            if paid { ("succeeded", "charge.succeeded") } else { ("failed", "charge.failed") };
        let metadata = if document.is_empty() { json!({}) } else { json!({"tailwater_document": document}) };
        let object = json!({
            "object": "charge", "amount": amount, "amount_captured": if paid { amount } else { 0 }, "captured": paid, "amount_refunded": 0, "currency": currency, "status": status, "paid": paid,
            "customer": customer, "metadata": metadata, "description": null, "receipt_number": null, "disputed": false,
            "failure_code": if paid { Value::Null } else { "card_declined".into() },
            "payment_intent": null, "balance_transaction": null, "refunded": false,
        });
        self.add("charges", "ch", event, object)
    }

    /// Money goes back.
    pub fn refund(&mut self, charge: &str, amount: u64) -> String {
        let of = self.of("charges");
        let currency = of.get(charge).and_then(|charge| charge.get("currency")).cloned().unwrap_or_default();
        let object = json!({"object": "refund", "amount": amount, "currency": currency, "charge": charge, "status": "succeeded",
                            "reason": "requested_by_customer", "metadata": {}});
        let id = self.add("refunds", "re", "refund.created", object);
        self.change(
            "charges",
            charge,
            "charge.refunded",
            json!({"amount_refunded": amount, "refunded": true}),
        );
        id
    }

    /// The customer's bank takes money back.
    pub fn dispute(&mut self, charge: &str, amount: u64) -> String {
        let of = self.of("charges");
        let currency = of.get(charge).and_then(|charge| charge.get("currency")).cloned().unwrap_or_default();
        let object = json!({"object": "dispute", "amount": amount, "currency": currency, "charge": charge,
                            "status": "needs_response", "reason": "fraudulent", "metadata": {}, "evidence_details": {"due_by": null}});
        self.add("disputes", "dp", "charge.dispute.created", object)
    }

    /// An invoice that Stripe has sent.
    pub fn invoice(&mut self, customer: &str, (amount, currency): (u64, &str), ours: &str) -> String {
        let metadata = if ours.is_empty() { json!({}) } else { json!({"tailwater_id": ours}) };
        let object = json!({
            "object": "invoice", "customer": customer, "status": "open", "number": format!("ST-{:04}", self.next + 1), "currency": currency,
            "amount_due": amount, "amount_paid": 0, "amount_remaining": amount, "total": amount, "metadata": metadata,
            "attempt_count": 0, "due_date": null, "status_transitions": {"paid_at": null, "finalized_at": self.events.now_s()},
        });
        self.add("invoices", "in", "invoice.finalized", object)
    }

    /// A customer subscribes.
    pub fn subscribe(&mut self, customer: &str, price: Price<'_>, currency: &str) -> String {
        let object = json!({
            "object": "subscription", "customer": customer, "status": "active", "currency": currency,
            "start_date": self.events.now_s(), "cancel_at": null, "canceled_at": null, "ended_at": null,
            "metadata": {}, "description": null, "items": items(price),
        });
        self.add("subscriptions", "sub", "customer.subscription.created", object)
    }

    /// Another price from now on.
    pub fn upgrade(&mut self, subscription: &str, price: Price<'_>) {
        let members = json!({"items": items(price)});
        self.change("subscriptions", subscription, "customer.subscription.updated", members);
    }

    /// Reads: one object, or a page of all, newest first. `None`: not of ours.
    #[must_use]
    pub fn read(&self, request: &Incoming) -> Option<Reply> {
        let parts: Vec<&str> = request.path.trim_start_matches("/v1/").split('/').collect();
        match parts.as_slice() {
            // https://docs.stripe.com/keys-best-practices: a restricted key that lacks a permission
            _ if self
                .forbidden
                .is_some_and(|start| request.path.trim_start_matches("/v1/").starts_with(start)) =>
            {
                let message = "The provided key does not have the required permissions for this endpoint";
                Some(Reply::plain(
                    403,
                    json!({"error": {"type": "invalid_request_error", "message": message}}),
                ))
            }
            ["events"] => Some(Reply::plain(200, self.events.list(&request.query))),
            [plural @ ("charges" | "refunds" | "disputes" | "invoices" | "subscriptions")] => {
                let objects = self.objects.get(plural).into_iter().flatten();
                let objects =
                    objects.filter(|(id, _)| self.unlisted.as_ref() != Some(id)).map(|(_, object)| object);
                Some(page(objects, &request.query))
            }
            [plural @ ("charges" | "refunds" | "disputes" | "invoices" | "subscriptions"), id] => {
                let found = self.objects.get(plural).and_then(|objects| objects.get(*id));
                let missing = json!({"error": {"type": "invalid_request_error", "code": "resource_missing"}});
                Some(found.map_or(Reply::plain(404, missing), |object| Reply::plain(200, object.clone())))
            }
            _ => None,
        }
    }
}

fn items(price: Price<'_>) -> Value {
    let Price { lookup_key, amount, plan, first_response_minutes } = price;
    let metadata = json!({"plan": plan, "first_response_minutes": first_response_minutes.to_string()});
    let price = json!({"id": format!("price_{lookup_key}"), "lookup_key": lookup_key, "nickname": null, "unit_amount": amount,
                       "recurring": {"interval": "month", "interval_count": 1}, "metadata": metadata});
    json!({"object": "list", "has_more": false, "data": [{"id": format!("si_{lookup_key}"), "quantity": 1, "price": price}]})
}

/// A page of objects, newest first.
pub(super) fn page<'a>(
    objects: impl DoubleEndedIterator<Item = &'a Value>,
    query: &BTreeMap<String, String>,
) -> Reply {
    let limit: usize = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(10);
    let all: Vec<&Value> = objects.rev().collect();
    let start = query.get("starting_after").map_or(0, |last| {
        all.iter()
            .position(|object| object.get("id").and_then(Value::as_str) == Some(last))
            .map_or(all.len(), |place| place + 1)
    });
    let data: Vec<&Value> = all.iter().copied().skip(start).take(limit.min(100)).collect();
    Reply::plain(200, json!({"object": "list", "data": data, "has_more": start + limit.min(100) < all.len()}))
}
