//! Three systems that speak of the same customers: an ERP with an API, a billing system and a support desk, all read and written. The
//! ERP is an Odoo-shaped database with a simulated API, or a real Odoo.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::demo::odoo::Odoo;
use tailwater::demo::shipped;
use tailwater::demo::vendor::odoo::{Invoice, OdooApi as Simulated};
use tailwater::demo::vendor::server::{Limit, VendorServer};
use tokio_postgres::Client;

use super::odoo_api::OdooApi;
use super::real_odoo::running;
use super::world::Daemon;
use super::{World, WorldOptions, eventually};

/// Number of the user that the simulated API writes as.
const BOT: i32 = 77;

/// What people do in the ERP.
pub enum People {
    /// In the Odoo-shaped database, beside its simulated API.
    Simulated(Odoo, VendorServer<Simulated>),
    /// Through a real Odoo's API.
    Real(OdooApi),
}

pub struct Triangle {
    pub world: World,
    pub people: People,
    /// The ERP's database.
    pub erp: Client,
    environment: Vec<(String, String)>,
}

impl Triangle {
    /// `owners`: the ownership file's, in one line. `flows`: a list.
    pub async fn start(owners: &str, flows: &str) -> Self {
        let world = World::start(WorldOptions::default()).await;
        settings(&world, owners, flows);
        let limit = Limit { requests: 10_000, window_s: 1.0 };
        let api = Simulated::new(&world.erp.url("postgres", "erp"), super::world::STRIPE_KEY, BOT).unwrap();
        let api = VendorServer::start(api, limit).await.unwrap();
        let target = "source = \"erp\"\nsettings = { database = \"erp\", timesheet_project = 1, timesheet_employee = 1 }\nquota = \"1000/s\"";
        world.add_target("odoo", &api.url(), target);
        let erp = world.erp.client("erp").await.unwrap();
        let people = People::Simulated(world.odoo().await, api);
        Self { world, people, erp, environment: Vec::new() }
    }

    /// The same with a running Odoo; `None` when there is none. `older`: it is spoken to as an Odoo before 19.
    pub async fn real(owners: &str, flows: &str, older: bool) -> Option<Self> {
        let odoo = running().await?;
        let api = OdooApi::found(&odoo.world)?;
        settings(&odoo.world, owners, flows);
        let target = if older { api.older_target().await } else { api.target() };
        odoo.world.add_settings(&target);
        odoo.erp.batch_execute(&watched(&api.bot)).await.unwrap();
        let environment = vec![("TAILWATER__SOURCES__ERP__URL".to_owned(), odoo.source)];
        Some(Self { world: odoo.world, people: People::Real(api), erp: odoo.erp, environment })
    }

    pub fn daemon(&self) -> Daemon {
        self.world.daemon_with(&self.environment())
    }

    /// Of each process of ours.
    pub fn environment(&self) -> Vec<(&str, &str)> {
        self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    pub async fn settled(&self, patience: Duration) {
        self.world.settled_to(&self.erp, patience).await;
    }

    /// Waits until nothing is owed, and has not been for as long as it takes for everything to be read once more.
    pub async fn at_rest(&self, patience: Duration) {
        loop {
            self.settled(patience).await;
            let before = self.effects().await;
            self.called_again(8).await;
            self.settled(patience).await;
            if self.effects().await == before {
                return;
            }
        }
    }

    /// Waits until the two others were called so many more times.
    pub async fn called_again(&self, more: usize) {
        let world = &self.world;
        let calls = || world.stripe.calls() + world.zendesk.calls();
        let enough = calls() + more;
        eventually(Duration::from_secs(30), "calls", async || {
            if calls() >= enough { Ok(()) } else { Err(world.log()) }
        })
        .await;
    }

    /// What has been written anywhere.
    async fn effects(&self) -> (usize, usize, i64) {
        let world = &self.world;
        let entries = world.count("select count(*) from entry where kind in ('event', 'attempt')").await;
        (world.stripe.effects(), world.zendesk.effects(), entries)
    }

    /// Requests that were carried out, changed nothing, and had no reason. `kills`: by the clocks of Stripe, Zendesk and the ERP's API.
    pub fn echoes(&self, kills: [&[f64]; 3]) -> Vec<String> {
        let world = &self.world;
        let mut journals = vec![("stripe", world.stripe.journal()), ("zendesk", world.zendesk.journal())];
        if let People::Simulated(_, api) = &self.people {
            journals.push(("odoo", api.journal()));
        }
        let found = journals.iter().zip(kills).flat_map(|((name, journal), kills)| {
            let calls = journal.echoes(kills, 5.0).into_iter();
            calls.map(move |call| format!("{name} {:.1} {}", call.at_s, call.line)).collect::<Vec<_>>()
        });
        found.collect()
    }

    /// Writes of ours in a running Odoo that changed nothing, and repeat none of which it was not known whether it was carried out.
    pub async fn nil_writes(&self) -> Vec<String> {
        if let People::Simulated(..) = self.people {
            return Vec::new();
        }
        let sql = "select min(at)::text, min(partner) from tailwater_nil_write group by transaction
                   having bool_and(nil) order by 1";
        let rows = self.erp.query(sql, &[]).await.unwrap();
        let mut found = Vec::new();
        for row in rows {
            let (at, partner): (String, i32) = (row.get(0), row.get(1));
            if !self.repeats_one_in_doubt(&at, partner).await {
                found.push(format!("{at} partner {partner}"));
            }
        }
        found
    }

    /// True when the request that was sent last before `at` had been sent before, and no outcome says that it was carried out.
    async fn repeats_one_in_doubt(&self, at: &str, partner: i32) -> bool {
        let sql = "with e as (
                     select seq, kind, convert_from(body, 'UTF8')::jsonb as body from entry where kind in ('attempt', 'outcome')
                   ), attempt as (
                     select seq, body ->> 'request_sha256' as sha256, body ->> 'recorded_at' as at from e
                     where kind = 'attempt' and body ->> 'target' = 'odoo' and body ->> 'id' = $1
                   ), last as (
                     select * from attempt where at::timestamptz <= $2::text::timestamptz order by seq desc limit 1
                   )
                   select exists (
                     select from last join attempt a on a.sha256 = last.sha256 and a.seq < last.seq
                     where not exists (
                       select from e where kind = 'outcome' and (body ->> 'attempt_seq')::bigint = a.seq
                         and body ->> 'class' <> 'uncertain'))";
        let ledger = self.world.ledger_client().await;
        ledger.query_one(sql, &[&format!("ERP-P-{partner}"), &at]).await.unwrap().get(0)
    }

    /// A company; gives its number.
    pub async fn create_company(&mut self, name: &str, email: &str) -> i32 {
        match &mut self.people {
            People::Simulated(odoo, _) => odoo.create_company(name, email, 1).await.unwrap(),
            People::Real(api) => i32::try_from(api.customer(name, email).await).unwrap(),
        }
    }

    /// Somebody who works there; gives the number.
    pub async fn create_contact(&mut self, company: i32, name: &str, email: &str) -> i32 {
        match &mut self.people {
            People::Simulated(odoo, _) => odoo.create_contact(company, name, email).await.unwrap(),
            People::Real(api) => {
                let values = json!({"name": name, "email": email, "parent_id": company});
                let id = api.call("res.partner", "create", json!({"vals_list": [values]})).await;
                i32::try_from(id[0].as_i64().unwrap()).unwrap()
            }
        }
    }

    /// Somebody writes a field of a partner.
    pub async fn write(&mut self, partner: i32, column: &str, value: &str) {
        match &mut self.people {
            People::Simulated(odoo, _) if column == "name" => odoo.rename(partner, value).await.unwrap(),
            People::Simulated(..) => {
                let sql = format!("update res_partner set {column} = $1, write_date = now() where id = $2");
                self.erp.execute(&sql, &[&value, &partner]).await.unwrap();
            }
            People::Real(api) => {
                let values = json!({column: value});
                api.call("res.partner", "write", json!({"ids": [partner], "vals": values})).await;
            }
        }
    }

    /// A partner is deleted.
    pub async fn remove(&self, partner: i32) {
        match &self.people {
            People::Simulated(..) => {
                self.erp.execute("delete from res_partner where id = $1", &[&partner]).await.unwrap();
            }
            People::Real(api) => {
                api.call("res.partner", "unlink", json!({"ids": [partner]})).await;
            }
        }
    }

    /// A posted invoice; gives its number.
    pub async fn invoice(&self, customer: i32, cents: u32) -> i64 {
        match &self.people {
            People::Simulated(_, api) => api.with(|api| {
                let number = i64::try_from(api.invoices.len()).unwrap() + 1;
                api.invoices.insert(number, Invoice { open: i64::from(cents), payments: Vec::new() });
                number
            }),
            People::Real(api) => api.invoice(i64::from(customer), f64::from(cents) / 100.0).await,
        }
    }

    /// How often a payment with this memo stands at the invoice.
    pub async fn payments(&self, invoice: i64, memo: &str) -> i64 {
        match &self.people {
            People::Simulated(_, api) => api.with(|api| {
                let payments = api.invoices.get(&invoice).map(|invoice| invoice.payments.clone());
                payments.into_iter().flatten().filter(|paid| paid == memo).count() as i64
            }),
            People::Real(api) => api.count("account.payment", json!([["memo", "=", memo]])).await,
        }
    }

    /// How often a note with this message id stands anywhere.
    pub async fn notes(&self, message_id: &str) -> i64 {
        match &self.people {
            People::Simulated(_, api) => {
                api.with(|api| i64::from(api.notes.get(message_id).copied().unwrap_or_default()))
            }
            People::Real(api) => api.count("mail.message", json!([["message_id", "=", message_id]])).await,
        }
    }

    /// A partner as the ERP has it.
    pub async fn partner(&self, id: i32, column: &str) -> Option<String> {
        let sql = format!("select {column}::text from res_partner where id = $1");
        self.erp.query_one(&sql, &[&id]).await.unwrap().get(0)
    }

    /// A customer as Stripe has it.
    pub fn at_stripe(&self, id: i32) -> Value {
        self.world.stripe.with(|stripe| stripe.customers()).remove(&format!("ERP-P-{id}")).unwrap_or_default()
    }

    /// A customer as Zendesk has it.
    pub fn organization(&self, id: i32) -> Value {
        let all = self.world.zendesk.with(|zendesk| zendesk.organizations());
        all.get(&format!("ERP-P-{id}")).cloned().unwrap_or_default()
    }

    /// A contact as Zendesk has it.
    pub fn user(&self, id: i32) -> Value {
        self.world.zendesk.with(|zendesk| zendesk.users()).remove(&format!("ERP-P-{id}")).unwrap_or_default()
    }
}

/// Notes each update of a partner by our own user, and whether it changes more than when and by whom it was written: the test's
/// observer. In the transaction that writes a company Odoo writes its contacts anew, by itself.
fn watched(bot: &str) -> String {
    format!(
        "drop table if exists tailwater_nil_write;
         create table tailwater_nil_write (at timestamptz not null default clock_timestamp(), partner int not null, nil bool not null,
           transaction bigint not null default txid_current());
         grant insert on tailwater_nil_write to public;
         create or replace function tailwater_nil_write() returns trigger language plpgsql as $$
         begin
           if new.write_uid = (select id from res_users where login = '{bot}') then
             insert into tailwater_nil_write (partner, nil) values (new.id,
               to_jsonb(old) - 'write_date' - 'write_uid' = to_jsonb(new) - 'write_date' - 'write_uid');
           end if;
           return null;
         end $$;
         create or replace trigger tailwater_nil_write after update on res_partner
           for each row execute function tailwater_nil_write();"
    )
}

/// Both others polled every second, with mappings of their own.
fn settings(world: &World, owners: &str, flows: &str) {
    let mappings = world.directory.path().join("mappings");
    shipped::write(&mappings).unwrap();
    std::fs::write(mappings.join("ownership.yaml"), format!("format: 1\nowners: {owners}\n")).unwrap();
    let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mappings");
    let (shipped, own) = (shipped.display().to_string(), mappings.display().to_string());
    world.edit_settings(
        &format!("mappings = \"{shipped}\""),
        &format!("mappings = \"{own}\"\nflows = {flows}"),
    );
    world.edit_settings("quota = \"60000/min\"", "quota = \"60000/min\"\nquotas = { export = \"1000/s\" }");
    for name in ["stripe", "zendesk"] {
        let polled = format!("kind = \"poll\"\ntarget = \"{name}\"\nevery = \"1s\"\nshare = 100\n");
        world.add_source(name, &polled);
    }
}
