//! Three systems that speak of the same customers: an ERP with an API, a billing system and a support desk, all read and written.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tailwater::demo::shipped;
use tailwater::demo::vendor::odoo::OdooApi;
use tailwater::demo::vendor::server::{Limit, VendorServer};

use super::{World, WorldOptions, eventually};

/// Number of the user that the ERP's API writes as.
const BOT: i32 = 77;

pub struct Triangle {
    pub world: World,
    pub odoo: VendorServer<OdooApi>,
}

impl Triangle {
    /// `owners`: the ownership file's, in one line.
    pub async fn start(owners: &str, flows: &str) -> Self {
        let world = World::start(WorldOptions::default()).await;
        let mappings = world.directory.path().join("mappings");
        shipped::write(&mappings).unwrap();
        std::fs::write(mappings.join("ownership.yaml"), format!("format: 1\nowners: {owners}\n")).unwrap();
        let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mappings");
        let (shipped, own) = (shipped.display().to_string(), mappings.display().to_string());
        world.edit_settings(
            &format!("mappings = \"{shipped}\""),
            &format!("mappings = \"{own}\"\nflows = {flows}"),
        );
        let limit = Limit { requests: 10_000, window_s: 1.0 };
        let api = OdooApi::new(world.erp.client("erp").await.unwrap(), super::world::STRIPE_KEY, BOT);
        let odoo = VendorServer::start(api, limit).await.unwrap();
        world.add_target(
            "odoo",
            &odoo.url(),
            "source = \"erp\"\nsettings = { database = \"erp\" }\nquota = \"1000/s\"",
        );
        world.edit_settings(
            "quota = \"60000/min\"",
            "quota = \"60000/min\"\nquotas = { export = \"1000/s\" }",
        );
        for name in ["stripe", "zendesk"] {
            world.add_source(
                name,
                &format!("kind = \"poll\"\ntarget = \"{name}\"\nevery = \"1s\"\nshare = 100\n"),
            );
        }
        Self { world, odoo }
    }

    /// Waits until nothing is owed, and has not been for as long as it takes for everything to be read once more.
    pub async fn at_rest(&self, patience: Duration) {
        let Self { world, .. } = self;
        loop {
            world.settled(patience).await;
            let before = self.effects().await;
            let polls = |count: usize| world.stripe.calls() + world.zendesk.calls() >= count + 8;
            let calls = world.stripe.calls() + world.zendesk.calls();
            eventually(patience, "polls", async || if polls(calls) { Ok(()) } else { Err(world.log()) })
                .await;
            world.settled(patience).await;
            if self.effects().await == before {
                return;
            }
        }
    }

    /// What has been written anywhere.
    async fn effects(&self) -> (usize, usize, usize, i64) {
        let Self { world, odoo } = self;
        let entries = world.count("select count(*) from entry where kind in ('event', 'attempt')").await;
        (world.stripe.effects(), world.zendesk.effects(), odoo.effects(), entries)
    }

    /// Requests that were carried out and changed nothing: echoes.
    pub fn nil_effects(&self) -> (usize, usize, usize) {
        let Self { world, odoo } = self;
        (
            world.stripe.journal().nil_effects(),
            world.zendesk.journal().nil_effects(),
            odoo.journal().nil_effects(),
        )
    }

    /// A partner as the ERP has it.
    pub async fn partner(&self, id: i32, column: &str) -> Option<String> {
        let client = self.world.erp.client("erp").await.unwrap();
        client
            .query_one(&format!("select {column}::text from res_partner where id = $1"), &[&id])
            .await
            .unwrap()
            .get(0)
    }

    /// A customer as Stripe has it.
    pub fn at_stripe(&self, id: i32) -> Value {
        self.world.stripe.with(|stripe| stripe.customers()).remove(&format!("ERP-P-{id}")).unwrap_or_default()
    }

    /// A customer as Zendesk has it.
    pub fn organization(&self, id: i32) -> Value {
        self.world
            .zendesk
            .with(|zendesk| zendesk.organizations())
            .remove(&format!("ERP-P-{id}"))
            .unwrap_or_default()
    }

    /// A contact as Zendesk has it.
    pub fn user(&self, id: i32) -> Value {
        self.world.zendesk.with(|zendesk| zendesk.users()).remove(&format!("ERP-P-{id}")).unwrap_or_default()
    }
}
