//! What the canonical documents should be, asked of Odoo's own tables in plain SQL: independent of the mapping.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio_postgres::Client;

/// Type and canonical id to data.
pub type Documents = BTreeMap<(String, String), Value>;

/// What a transaction changed: `None` for what is gone.
pub type Changes = BTreeMap<(String, String), Option<Value>>;

const ADDRESS: &str =
    "jsonb_build_object('street', p.street, 'street2', p.street2, 'postal_code', p.zip, 'city', p.city,
  'state', coalesce(s.code, s.name), 'country', c.code)";

const EMAIL: &str = r#"case when p.email ~ '^[^@\s,;<>"]+@[^@\s,;<>"]+[.][^@\s.,;<>"]+$' or p.email = '' then p.email
  when p.email_normalized ~ '^[^@\s,;<>"]+@[^@\s,;<>"]+[.][^@\s.,;<>"]+$' then p.email_normalized end"#;

const IS_CUSTOMER: &str =
    "(p.is_company is true or coalesce(p.commercial_partner_id = p.id, p.parent_id is null))";

const STRANGERS: &str = "not exists (select from res_company x where x.partner_id = p.id)
  and not exists (select from res_users x where x.partner_id = p.id and x.share is not true)";

/// Text of a decimal without trailing zeros.
fn plain(number: &str) -> String {
    format!("trim_scale(({number})::text::numeric)::text")
}

fn lines(sign: &str) -> String {
    format!(
        "coalesce((select jsonb_agg(jsonb_build_object('id', l.id::text, 'description', l.name,
           'product', 'ERP-V-' || l.product_id, 'product_code', v.default_code, 'product_name', t.name->>'en_US',
           'quantity', {quantity}, 'unit', u.name->>'en_US', 'unit_price', {price}, 'discount_percent', {discount},
           'untaxed', round({sign} * l.amount_currency, y.decimal_places)::text,
           'taxes', coalesce((select jsonb_agg(x.name->>'en_US' order by x.id) from account_move_line_account_tax_rel r
              join account_tax x on x.id = r.account_tax_id where r.account_move_line_id = l.id), '[]'),
           'analytic', coalesce((select jsonb_agg(jsonb_build_object('account', a.key, 'percent', {percent}) order by length(a.key), a.key)
              from jsonb_each_text(l.analytic_distribution) a), '[]')) order by l.sequence, l.id)
         from account_move_line l left join product_product v on v.id = l.product_id
         left join product_template t on t.id = v.product_tmpl_id left join uom_uom u on u.id = l.product_uom_id
         where l.move_id = m.id and (l.display_type = 'product' or (l.display_type = 'rounding' and l.tax_line_id is null))), '[]')",
        quantity = plain("l.quantity"),
        price = plain("l.price_unit"),
        discount = plain("l.discount"),
        percent = plain("a.value"),
    )
}

fn move_document(types: &str, sign: &str, own: &str) -> String {
    format!(
        "select 'ERP-I-' || m.id, jsonb_build_object('id', 'ERP-I-' || m.id, 'number', m.name,
           'status', case when m.state = 'draft' then 'draft' when m.state = 'cancel' then 'cancelled'
              else case m.payment_state when 'reversed' then 'reversed' when 'paid' then 'paid' when 'in_payment' then 'paid'
                   when 'partial' then 'partially_paid' else 'posted' end end,
           'settled', m.state = 'posted' and m.payment_state in ('paid', 'reversed'),
           'customer', 'ERP-P-' || m.commercial_partner_id, 'bill_to', 'ERP-P-' || m.partner_id,
           'seller', 'ERP-C-' || m.company_id, 'currency', y.name, 'issued_on', m.invoice_date, 'due_on', m.invoice_date_due,
           'reference', m.ref, 'origin', m.invoice_origin,
           'untaxed', round(m.amount_untaxed, y.decimal_places)::text, 'tax', round(m.amount_tax, y.decimal_places)::text,
           'total', round(m.amount_total, y.decimal_places)::text, 'residual', round(m.amount_residual, y.decimal_places)::text,
           'lines', {lines},
           'taxes', coalesce((select jsonb_agg(jsonb_build_object('name', x.name->>'en_US',
                'rate_percent', case x.amount_type when 'percent' then {rate} end,
                'amount', round({sign} * l.amount_currency, y.decimal_places)::text) order by l.sequence, l.id)
              from account_move_line l left join account_tax x on x.id = l.tax_line_id
              where l.move_id = m.id and (l.display_type = 'tax' or (l.display_type = 'rounding' and l.tax_line_id is not null))), '[]')) || {own}
         from account_move m join res_currency y on y.id = m.currency_id
         left join account_payment_term w on w.id = m.invoice_payment_term_id where m.move_type in ({types})",
        lines = lines(sign),
        rate = plain("x.amount"),
    )
}

fn queries() -> Vec<(&'static str, String)> {
    let partner = "from res_partner p left join res_country c on c.id = p.country_id left join res_country_state s on s.id = p.state_id";
    vec![
        (
            "customer.v1",
            format!(
                "select 'ERP-P-' || p.id, jsonb_build_object('id', 'ERP-P-' || p.id,
                   'name', coalesce(nullif(trim(p.name), ''), p.complete_name), 'company', p.is_company is true,
                   'active', p.active is not false, 'reference', p.ref, 'vat', p.vat, 'email', {EMAIL}, 'phone', p.phone,
                   'website', p.website, 'language', p.lang, 'address', {ADDRESS},
                   'tags', coalesce((select jsonb_agg(g.name->>'en_US' order by g.id) from res_partner_category g
                      join res_partner_res_partner_category_rel r on r.category_id = g.id where r.partner_id = p.id), '[]'))
                 {partner} where {IS_CUSTOMER} and {STRANGERS}"
            ),
        ),
        (
            "contact.v1",
            format!(
                "select 'ERP-P-' || p.id, jsonb_build_object('id', 'ERP-P-' || p.id,
                   'name', coalesce(nullif(trim(p.name), ''), p.complete_name),
                   'customer', 'ERP-P-' || coalesce(p.commercial_partner_id, p.parent_id), 'active', p.active is not false,
                   'role', p.type, 'email', {EMAIL}, 'phone', p.phone, 'job_title', p.function, 'language', p.lang,
                   'address', {ADDRESS})
                 {partner} where not {IS_CUSTOMER} and {STRANGERS}
                   and not exists (select from res_company x where x.partner_id = p.commercial_partner_id)"
            ),
        ),
        (
            "invoice.v1",
            move_document(
                "'out_invoice', 'out_receipt'",
                "-1",
                "jsonb_build_object('payment_terms', w.name->>'en_US', 'payment_reference', m.payment_reference)",
            ),
        ),
        (
            "credit_note.v1",
            move_document("'out_refund'", "1", "jsonb_build_object('reverses', 'ERP-I-' || m.reversed_entry_id)"),
        ),
        ("order.v1", order()),
        ("payment.v1", payment()),
        ("product.v1", product()),
        ("price.v1", price()),
        ("subscription.v1", subscription()),
        ("entitlement.v1", entitlement()),
        ("support_case.v1", SUPPORT_CASE.to_owned()),
        ("usage.v1", usage()),
    ]
}

fn order() -> String {
    format!(
        "select 'ERP-O-' || o.id, jsonb_build_object('id', 'ERP-O-' || o.id, 'number', o.name,
           'status', case o.state when 'sale' then 'confirmed' when 'cancel' then 'cancelled' else o.state end,
           'locked', o.locked is true,
           'invoicing', case o.invoice_status when 'to invoice' then 'to_invoice' when 'invoiced' then 'invoiced'
              when 'upselling' then 'upselling' else 'nothing' end,
           'customer', 'ERP-P-' || p.commercial_partner_id, 'contact', 'ERP-P-' || o.partner_id,
           'bill_to', 'ERP-P-' || o.partner_invoice_id, 'ship_to', 'ERP-P-' || o.partner_shipping_id,
           'seller', 'ERP-C-' || o.company_id, 'currency', y.name,
           'ordered_at', to_char(o.date_order, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), 'valid_until', o.validity_date,
           'delivery_at', to_char(o.commitment_date, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
           'payment_terms', w.name->>'en_US', 'reference', o.client_order_ref, 'note', o.note,
           'untaxed', round(o.amount_untaxed, y.decimal_places)::text, 'tax', round(o.amount_tax, y.decimal_places)::text,
           'total', round(o.amount_total, y.decimal_places)::text,
           'rounding', round(o.amount_untaxed - coalesce((select sum(l.price_subtotal) from sale_order_line l
              where l.order_id = o.id and l.display_type is null), 0), y.decimal_places)::text,
           'lines', coalesce((select jsonb_agg(jsonb_build_object('id', l.id::text, 'description', l.name,
                'product', 'ERP-V-' || l.product_id, 'product_code', v.default_code, 'product_name', t.name->>'en_US',
                'quantity', {quantity}, 'delivered', {delivered}, 'invoiced', {invoiced}, 'unit', u.name->>'en_US',
                'unit_price', {price}, 'discount_percent', {discount},
                'untaxed', round(l.price_subtotal, y.decimal_places)::text,
                'tax', round(l.price_total - l.price_subtotal, y.decimal_places)::text,
                'taxes', coalesce((select jsonb_agg(x.name->>'en_US' order by x.id) from account_tax_sale_order_line_rel r
                   join account_tax x on x.id = r.account_tax_id where r.sale_order_line_id = l.id), '[]'),
                'analytic', '[]'::jsonb) order by l.sequence, l.id)
              from sale_order_line l left join product_product v on v.id = l.product_id
              left join product_template t on t.id = v.product_tmpl_id left join uom_uom u on u.id = l.product_uom_id
              where l.order_id = o.id and l.display_type is null), '[]'))
         from sale_order o join res_partner p on p.id = o.partner_id join res_currency y on y.id = o.currency_id
         left join account_payment_term w on w.id = o.payment_term_id",
        quantity = plain("l.product_uom_qty"),
        delivered = plain("l.qty_delivered"),
        invoiced = plain("l.qty_invoiced"),
        price = plain("l.price_unit"),
        discount = plain("l.discount"),
    )
}

fn payment() -> String {
    "select 'ERP-Y-' || a.id, jsonb_build_object('id', 'ERP-Y-' || a.id, 'number', a.name,
       'direction', case a.payment_type when 'inbound' then 'received' else 'refunded' end,
       'status', case a.state when 'in_process' then 'pending' when 'canceled' then 'cancelled' else a.state end,
       'customer', 'ERP-P-' || p.commercial_partner_id, 'seller', 'ERP-C-' || a.company_id, 'currency', y.name,
       'amount', round(a.amount, y.decimal_places)::text, 'paid_on', a.date, 'memo', a.memo, 'reference', a.payment_reference,
       'reconciled', a.is_reconciled is true, 'matched_with_bank', a.is_matched is true,
       'settles', coalesce((select jsonb_agg(jsonb_build_object('document', 'ERP-I-' || m.id,
            'amount', round(r.credit_amount_currency, y.decimal_places)::text) order by l.id, r.id)
          from account_move_line l join account_partial_reconcile r on r.credit_move_id = l.id
          join account_move_line d on d.id = r.debit_move_id join account_move m on m.id = d.move_id
          where l.move_id = a.move_id and m.move_type in ('out_invoice', 'out_receipt')), '[]')
       || coalesce((select jsonb_agg(jsonb_build_object('document', 'ERP-I-' || m.id,
            'amount', round(r.debit_amount_currency, y.decimal_places)::text) order by l.id, r.id)
          from account_move_line l join account_partial_reconcile r on r.debit_move_id = l.id
          join account_move_line d on d.id = r.credit_move_id join account_move m on m.id = d.move_id
          where l.move_id = a.move_id and m.move_type = 'out_refund'), '[]'))
     from account_payment a join res_partner p on p.id = a.partner_id join res_currency y on y.id = a.currency_id
     where a.partner_type = 'customer'"
        .to_owned()
}

fn product() -> String {
    format!(
        "select 'ERP-V-' || v.id, jsonb_build_object('id', 'ERP-V-' || v.id, 'name', t.name->>'en_US',
           'code', nullif(trim(v.default_code), ''), 'barcode', nullif(trim(v.barcode), ''),
           'active', v.active is not false and t.active is not false, 'sellable', t.sale_ok is true,
           'kind', case t.type when 'service' then 'service' when 'combo' then 'bundle' else 'goods' end,
           'description', nullif(trim(t.description_sale->>'en_US'), ''), 'category', c.complete_name, 'unit', u.name->>'en_US',
           'seller', 'ERP-C-' || t.company_id, 'list_price', {price}, 'cost', {cost},
           'attributes', coalesce((select jsonb_agg(n.name->>'en_US' order by b.product_template_attribute_value_id)
              from product_variant_combination b join product_template_attribute_value w on w.id = b.product_template_attribute_value_id
              join product_attribute_value n on n.id = w.product_attribute_value_id where b.product_product_id = v.id), '[]'))
         from product_product v join product_template t on t.id = v.product_tmpl_id
         left join product_category c on c.id = t.categ_id left join uom_uom u on u.id = t.uom_id",
        price = plain("t.list_price"),
        cost = plain("v.standard_price->>coalesce(t.company_id, 1)::text"),
    )
}

fn price() -> String {
    format!(
        "select 'ERP-PR-' || i.id, jsonb_build_object('id', 'ERP-PR-' || i.id, 'list', 'ERP-PL-' || i.pricelist_id,
           'list_name', l.name->>'en_US', 'active', l.active is not false, 'currency', y.name,
           'applies_to', case i.applied_on when '0_product_variant' then 'variant' when '1_product' then 'product'
              when '2_product_category' then 'category' else 'everything' end,
           'product', 'ERP-V-' || i.product_id, 'template', 'ERP-T-' || i.product_tmpl_id, 'category', i.categ_id::text,
           'minimum_quantity', {least}, 'rule', i.compute_price, 'base', case when i.compute_price <> 'fixed' then i.base end,
           'amount', case i.compute_price when 'fixed' then {fixed} end,
           'discount_percent', case i.compute_price when 'percentage' then {percent} when 'formula' then {discount} end,
           'surcharge', case i.compute_price when 'formula' then {surcharge} end,
           'valid_from', to_char(i.date_start, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
           'valid_until', to_char(i.date_end, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))
         from product_pricelist_item i join product_pricelist l on l.id = i.pricelist_id join res_currency y on y.id = l.currency_id",
        least = plain("i.min_quantity"),
        fixed = plain("i.fixed_price"),
        percent = plain("i.percent_price"),
        discount = plain("i.price_discount"),
        surcharge = plain("i.price_surcharge"),
    )
}

fn subscription() -> String {
    format!(
        "select 'ERP-S-' || k.id, jsonb_build_object('id', 'ERP-S-' || k.id, 'number', k.code, 'name', k.name,
           'status', case when k.active is false then 'cancelled' else 'active' end,
           'customer', 'ERP-P-' || k.commercial_partner_id, 'bill_to', 'ERP-P-' || coalesce(k.invoice_partner_id, k.partner_id),
           'seller', 'ERP-C-' || k.company_id, 'currency', coalesce(y.name, z.name), 'starts_on', k.date_start,
           'ends_on', k.date_end, 'next_invoice_on', k.recurring_next_date,
           'every', jsonb_build_object('count', case when k.line_recurrence is not true then k.recurring_interval end,
              'unit', case when k.line_recurrence is not true then case k.recurring_rule_type when 'daily' then 'day'
              when 'weekly' then 'week' when 'yearly' then 'year' when 'quarterly' then 'quarter'
              when 'semesterly' then 'half_year' when 'monthly' then 'month' end end),
           'payment_terms', w.name->>'en_US',
           'lines', coalesce((select jsonb_agg(jsonb_build_object('id', l.id::text, 'description', l.name,
                'product', 'ERP-V-' || l.product_id, 'product_code', v.default_code, 'product_name', t.name->>'en_US',
                'quantity', {quantity}, 'unit', u.name->>'en_US',
                'unit_price', case when l.automatic_price is not true then {price} end, 'discount_percent', {discount},
                'active', l.is_canceled is not true and l.active is not false,
                'every', jsonb_build_object('count', case when k.line_recurrence then l.recurring_interval else k.recurring_interval end,
                   'unit', case case when k.line_recurrence then l.recurring_rule_type else k.recurring_rule_type end when 'daily' then 'day'
              when 'weekly' then 'week' when 'yearly' then 'year' when 'quarterly' then 'quarter'
              when 'semesterly' then 'half_year' when 'monthly' then 'month' end), 'starts_on', l.date_start, 'ends_on', l.date_end)
                order by l.sequence, l.id)
              from contract_line l left join product_product v on v.id = l.product_id
              left join product_template t on t.id = v.product_tmpl_id left join uom_uom u on u.id = l.uom_id
              where l.contract_id = k.id and l.display_type is null), '[]'))
         from contract_contract k left join res_currency y on y.id = k.manual_currency_id
         left join res_company c on c.id = k.company_id left join res_currency z on z.id = c.currency_id
         left join account_payment_term w on w.id = k.payment_term_id where k.contract_type = 'sale'",
        quantity = plain("l.quantity"),
        price = plain("l.specific_price"),
        discount = plain("l.discount"),
    )
}

fn entitlement() -> String {
    format!(
        "select 'ERP-E-' || l.id, jsonb_build_object('id', 'ERP-E-' || l.id, 'customer', 'ERP-P-' || k.commercial_partner_id,
           'subscription', 'ERP-S-' || k.id, 'product_code', v.default_code,
           'plan', 'standard', 'first_response_minutes', 1440, 'around_the_clock', false, 'quantity', {quantity},
           'active', k.active is not false and l.is_canceled is not true and l.active is not false,
           'valid_from', coalesce(l.date_start, k.date_start), 'valid_until', coalesce(l.date_end, k.date_end))
         from contract_line l join contract_contract k on k.id = l.contract_id join product_product v on v.id = l.product_id
         join product_template t on t.id = v.product_tmpl_id
         where t.type = 'service' and k.contract_type = 'sale' and l.display_type is null",
        quantity = plain("l.quantity"),
    )
}

const SUPPORT_CASE: &str = "
  select 'ERP-K-' || h.id, jsonb_build_object('id', 'ERP-K-' || h.id, 'number', h.number, 'subject', h.name,
    'description', nullif(trim(regexp_replace(h.description, '<[^>]*>', '', 'g')), ''),
    'status', case when g.closed is true then 'closed' else 'open' end, 'stage', g.name->>'en_US', 'team', t.name->>'en_US',
    'category', c.name->>'en_US', 'priority', (array['low', 'normal', 'high', 'urgent'])[h.priority::int + 1],
    'active', h.active is not false, 'customer', 'ERP-P-' || coalesce(h.commercial_partner_id, h.partner_id),
    'contact', 'ERP-P-' || h.partner_id, 'seller', 'ERP-C-' || h.company_id,
    'opened_at', regexp_replace(to_char(h.create_date, 'YYYY-MM-DD\"T\"HH24:MI:SS.US'), '\\.?0*$', '') || 'Z',
    'closed_at', to_char(h.closed_date, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))
  from helpdesk_ticket h left join helpdesk_ticket_stage g on g.id = h.stage_id
  left join helpdesk_ticket_team t on t.id = h.team_id left join helpdesk_ticket_category c on c.id = h.category_id";

fn usage() -> String {
    format!(
        "select 'ERP-U-' || a.id, jsonb_build_object('id', 'ERP-U-' || a.id, 'kind', 'time', 'description', a.name,
           'used_on', a.date, 'quantity', {quantity}, 'unit', u.name->>'en_US',
           'customer', 'ERP-P-' || p.commercial_partner_id, 'seller', 'ERP-C-' || a.company_id,
           'project', j.name->>'en_US', 'task', k.name)
         from account_analytic_line a left join res_partner p on p.id = a.partner_id left join uom_uom u on u.id = a.product_uom_id
         join project_project j on j.id = a.project_id left join project_task k on k.id = a.task_id",
        quantity = plain("a.unit_amount"),
    )
}

/// What Odoo's tables say now.
pub async fn documents(erp: &Client) -> Documents {
    let mut documents = Documents::new();
    for (event_type, sql) in queries() {
        let rows = erp.query(&sql, &[]).await.unwrap_or_else(|error| panic!("{event_type}: {error:?}"));
        for row in rows {
            documents.insert((event_type.to_owned(), row.get(0)), row.get(1));
        }
    }
    documents
}

/// What lies between two states.
pub fn changes(before: &Documents, after: &Documents) -> Changes {
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), None));
    let changed = after.iter().filter(|(key, data)| before.get(*key) != Some(*data));
    gone.chain(changed.map(|(key, data)| (key.clone(), Some(data.clone())))).collect()
}

/// An event of the ledger.
#[derive(Debug)]
pub struct Told {
    pub commit_lsn: String,
    pub key: (String, String),
    pub data: Option<Value>,
    pub fault: Option<String>,
}

/// Events of the ledger after an entry, in their order, and the number of its last entry.
pub async fn told(ledger: &Client, after: i64) -> (Vec<Told>, i64) {
    let sql = "select seq, body from entry where kind = 'event' and seq > $1 order by seq";
    let mut told = Vec::new();
    let mut last = after;
    for row in ledger.query(sql, &[&after]).await.unwrap() {
        last = row.get(0);
        let body: Value = serde_json::from_slice(&row.get::<_, Vec<u8>>(1)).unwrap();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        told.push(Told {
            commit_lsn: text(&body["source"]["commit_lsn"]).unwrap(),
            key: (text(&body["type"]).unwrap(), text(&body["id"]).unwrap()),
            data: (body["op"] != "delete").then(|| body["data"].clone()),
            fault: text(&body["fault"]),
        });
    }
    (told, last)
}

/// Fails with the fields that differ.
#[track_caller]
pub fn assert_same_documents(what: &str, told: &Changes, expected: &Changes) {
    let mut differences = Vec::new();
    for key in told.keys().chain(expected.keys().filter(|key| !told.contains_key(*key))) {
        match (told.get(key), expected.get(key)) {
            (Some(Some(a)), Some(Some(b))) => {
                differences.extend(fields(&format!("{} {}", key.0, key.1), a, b))
            }
            (a, b) if a != b => differences.push(format!("{} {}: told {a:?}, expected {b:?}", key.0, key.1)),
            _ => {}
        }
    }
    assert!(differences.is_empty(), "{what}: {} differences:\n{}", differences.len(), differences.join("\n"));
}

fn fields(path: &str, told: &Value, expected: &Value) -> Vec<String> {
    match (told, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let member = |map: &serde_json::Map<String, Value>, key: &str| {
                map.get(key).cloned().unwrap_or("(absent)".into())
            };
            keys.into_iter()
                .flat_map(|key| fields(&format!("{path}.{key}"), &member(a, key), &member(b, key)))
                .collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .flat_map(|(index, (a, b))| fields(&format!("{path}[{index}]"), a, b))
            .collect(),
        (a, b) if a == b => Vec::new(),
        (a, b) => vec![format!("{path}: told {a}, expected {b}")],
    }
}
