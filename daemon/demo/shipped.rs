//! The mapping files that come with tailwater, inside the binary: the demo needs no source tree.

use std::io;
use std::path::Path;

/// Path below `mappings/`, and content.
pub const FILES: [(&str, &str); 57] = [
    ("README.md", include_str!("../../mappings/README.md")),
    ("canonical/contact.v1.json", include_str!("../../mappings/canonical/contact.v1.json")),
    ("canonical/credit_note.v1.json", include_str!("../../mappings/canonical/credit_note.v1.json")),
    ("canonical/customer.v1.json", include_str!("../../mappings/canonical/customer.v1.json")),
    ("canonical/dispute.v1.json", include_str!("../../mappings/canonical/dispute.v1.json")),
    ("canonical/entitlement.v1.json", include_str!("../../mappings/canonical/entitlement.v1.json")),
    ("canonical/invoice.v1.json", include_str!("../../mappings/canonical/invoice.v1.json")),
    ("canonical/invoice_status.v1.json", include_str!("../../mappings/canonical/invoice_status.v1.json")),
    ("canonical/merge.v1.json", include_str!("../../mappings/canonical/merge.v1.json")),
    ("canonical/order.v1.json", include_str!("../../mappings/canonical/order.v1.json")),
    ("canonical/payment.v1.json", include_str!("../../mappings/canonical/payment.v1.json")),
    ("canonical/price.v1.json", include_str!("../../mappings/canonical/price.v1.json")),
    ("canonical/product.v1.json", include_str!("../../mappings/canonical/product.v1.json")),
    ("canonical/subscription.v1.json", include_str!("../../mappings/canonical/subscription.v1.json")),
    ("canonical/support_case.v1.json", include_str!("../../mappings/canonical/support_case.v1.json")),
    ("canonical/usage.v1.json", include_str!("../../mappings/canonical/usage.v1.json")),
    ("connectors/chargebee.yaml", include_str!("../../mappings/connectors/chargebee.yaml")),
    ("connectors/freshdesk.yaml", include_str!("../../mappings/connectors/freshdesk.yaml")),
    ("connectors/nats.yaml", include_str!("../../mappings/connectors/nats.yaml")),
    ("connectors/odoo-rpc.yaml", include_str!("../../mappings/connectors/odoo-rpc.yaml")),
    ("connectors/odoo.yaml", include_str!("../../mappings/connectors/odoo.yaml")),
    ("connectors/redis-stream.yaml", include_str!("../../mappings/connectors/redis-stream.yaml")),
    ("connectors/stripe.yaml", include_str!("../../mappings/connectors/stripe.yaml")),
    ("connectors/zendesk.yaml", include_str!("../../mappings/connectors/zendesk.yaml")),
    ("ownership.yaml", include_str!("../../mappings/ownership.yaml")),
    ("routes/bus.yaml", include_str!("../../mappings/routes/bus.yaml")),
    ("routes/default.yaml", include_str!("../../mappings/routes/default.yaml")),
    ("routes/flows.yaml", include_str!("../../mappings/routes/flows.yaml")),
    ("sources/chargebee/billing.yaml", include_str!("../../mappings/sources/chargebee/billing.yaml")),
    (
        "sources/chargebee/examples/billing.yaml",
        include_str!("../../mappings/sources/chargebee/examples/billing.yaml"),
    ),
    (
        "sources/freshdesk/examples/ticket.yaml",
        include_str!("../../mappings/sources/freshdesk/examples/ticket.yaml"),
    ),
    ("sources/freshdesk/tickets.yaml", include_str!("../../mappings/sources/freshdesk/tickets.yaml")),
    (
        "sources/odoo/examples/customer_with_contact.yaml",
        include_str!("../../mappings/sources/odoo/examples/customer_with_contact.yaml"),
    ),
    (
        "sources/odoo/examples/invoice_life.yaml",
        include_str!("../../mappings/sources/odoo/examples/invoice_life.yaml"),
    ),
    ("sources/odoo/examples/merge.yaml", include_str!("../../mappings/sources/odoo/examples/merge.yaml")),
    (
        "sources/odoo/examples/subscription_and_entitlement.yaml",
        include_str!("../../mappings/sources/odoo/examples/subscription_and_entitlement.yaml"),
    ),
    (
        "sources/odoo/examples/subscription_of_enterprise.yaml",
        include_str!("../../mappings/sources/odoo/examples/subscription_of_enterprise.yaml"),
    ),
    ("sources/odoo/invoices.yaml", include_str!("../../mappings/sources/odoo/invoices.yaml")),
    ("sources/odoo/merges.yaml", include_str!("../../mappings/sources/odoo/merges.yaml")),
    ("sources/odoo/orders.yaml", include_str!("../../mappings/sources/odoo/orders.yaml")),
    ("sources/odoo/partners.yaml", include_str!("../../mappings/sources/odoo/partners.yaml")),
    ("sources/odoo/payments.yaml", include_str!("../../mappings/sources/odoo/payments.yaml")),
    ("sources/odoo/products.yaml", include_str!("../../mappings/sources/odoo/products.yaml")),
    (
        "sources/odoo/subscriptions_contract.yaml",
        include_str!("../../mappings/sources/odoo/subscriptions_contract.yaml"),
    ),
    (
        "sources/odoo/subscriptions_enterprise.yaml",
        include_str!("../../mappings/sources/odoo/subscriptions_enterprise.yaml"),
    ),
    ("sources/odoo/support.yaml", include_str!("../../mappings/sources/odoo/support.yaml")),
    ("sources/odoo/usage.yaml", include_str!("../../mappings/sources/odoo/usage.yaml")),
    ("sources/stripe/customers.yaml", include_str!("../../mappings/sources/stripe/customers.yaml")),
    (
        "sources/stripe/examples/payments.yaml",
        include_str!("../../mappings/sources/stripe/examples/payments.yaml"),
    ),
    (
        "sources/stripe/examples/subscription_life.yaml",
        include_str!("../../mappings/sources/stripe/examples/subscription_life.yaml"),
    ),
    ("sources/stripe/invoices.yaml", include_str!("../../mappings/sources/stripe/invoices.yaml")),
    ("sources/stripe/payments.yaml", include_str!("../../mappings/sources/stripe/payments.yaml")),
    ("sources/stripe/refunds.yaml", include_str!("../../mappings/sources/stripe/refunds.yaml")),
    ("sources/stripe/subscriptions.yaml", include_str!("../../mappings/sources/stripe/subscriptions.yaml")),
    (
        "sources/zendesk/examples/ticket_life.yaml",
        include_str!("../../mappings/sources/zendesk/examples/ticket_life.yaml"),
    ),
    ("sources/zendesk/people.yaml", include_str!("../../mappings/sources/zendesk/people.yaml")),
    ("sources/zendesk/tickets.yaml", include_str!("../../mappings/sources/zendesk/tickets.yaml")),
];

/// Writes them below `directory`.
pub fn write(directory: &Path) -> io::Result<()> {
    for (name, content) in FILES {
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, content)?;
    }
    Ok(())
}
