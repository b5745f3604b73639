//! The Stripe connector against a Stripe that others wrote: localstripe, in a process of its own. `make test-localstripe` brings it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tailwater::demo::private::TemporaryDirectory;
use tailwater::demo::private::write_secret;
use tailwater::demo::shipped;

use crate::polling::await_events;
use crate::support::{World, WorldOptions, eventually};

struct LocalStripe {
    child: Child,
    url: String,
    client: reqwest::Client,
}

impl Drop for LocalStripe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl LocalStripe {
    /// `None` when there is none.
    async fn start() -> Option<Self> {
        let Ok(python) = std::env::var("TAILWATER_LOCALSTRIPE") else {
            eprintln!("SKIPPED: TAILWATER_LOCALSTRIPE names no Python that has localstripe");
            return None;
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let program = format!(
            "import localstripe.server as s, aiohttp.web as w; w.run_app(s.app, host='127.0.0.1', port={port}, print=None)"
        );
        let child = Command::new(python)
            .args(["-c", &program])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://127.0.0.1:{port}");
        let stripe = Self { child, url, client: reqwest::Client::new() };
        eventually(Duration::from_secs(30), "localstripe", async || {
            let answered = stripe.client.get(format!("{}/v1/customers", stripe.url)).send().await;
            answered.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
        Some(stripe)
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.client.get(format!("{}{path}", self.url)).bearer_auth("sk_test_12345");
        serde_json::from_slice(&request.send().await.unwrap().bytes().await.unwrap()).unwrap()
    }

    async fn post(&self, path: &str, form: &str) -> Value {
        let request = self.client.post(format!("{}{path}", self.url)).bearer_auth("sk_test_12345");
        let request =
            request.header("content-type", "application/x-www-form-urlencoded").body(form.to_owned());
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let body = answer.bytes().await.unwrap();
        assert!(status.is_success(), "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }
}

/// What localstripe does not have is left out: filters of events, disputes, newer subscriptions.
fn mappings(directory: &TemporaryDirectory) {
    shipped::write(directory.path()).unwrap();
    let edit = |file: &str, edit: &dyn Fn(String) -> String| {
        let path = directory.path().join(file);
        let text = edit(std::fs::read_to_string(&path).unwrap());
        std::fs::write(path, text).unwrap();
    };
    edit("connectors/stripe.yaml", &|text| text.replace("created[gte]={since}&", ""));
    edit("sources/stripe/payments.yaml", &|text| {
        let text = text.split("  dispute.v1:").next().unwrap().to_owned();
        let kept = text.lines().filter(|line| !line.starts_with("  dispute:"));
        kept.collect::<Vec<_>>().join("\n")
    });
    for file in
        ["refunds.yaml", "subscriptions.yaml", "examples/payments.yaml", "examples/subscription_life.yaml"]
    {
        std::fs::remove_file(directory.path().join("sources/stripe").join(file)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_and_what_they_pay_go_to_and_come_from_a_stripe_of_others() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let directory = TemporaryDirectory::new("tailwater-localstripe").unwrap();
    mappings(&directory);
    let world = World::start(WorldOptions::default()).await;
    world.edit_settings(
        &format!("{}/mappings", env!("CARGO_MANIFEST_DIR")),
        &directory.path().display().to_string(),
    );
    world.edit_settings(&world.stripe.url(), &stripe.url);
    write_secret(world.directory.path().join("stripe.key"), "sk_test_12345").unwrap();
    world.add_source("stripe", crate::polling::STRIPE_POLLED);
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Alpine", "a@example.test", 1).await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    odoo.rename(company, "Alps").await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    let customers = stripe.get("/v1/customers?limit=100").await;
    let ours: Vec<&Value> = customers["data"].as_array().unwrap().iter().collect();
    assert_eq!(ours.len(), 1, "{customers}");
    assert_eq!(
        (&ours[0]["name"], &ours[0]["metadata"]["tailwater_id"]),
        (&"Alps".into(), &format!("ERP-P-{company}").into())
    );
    let id = ours[0]["id"].as_str().unwrap();
    let card = "type=card&card[number]=4242424242424242&card[exp_month]=12&card[exp_year]=2030&card[cvc]=123";
    let card = stripe.post("/v1/payment_methods", card).await["id"].as_str().unwrap().to_owned();
    stripe.post(&format!("/v1/payment_methods/{card}/attach"), &format!("customer={id}")).await;
    let default = format!("invoice_settings[default_payment_method]={card}");
    stripe.post(&format!("/v1/customers/{id}"), &default).await;
    stripe.post("/v1/plans", "id=gold&amount=9900&currency=eur&interval=month&product[name]=Gold").await;
    stripe.post("/v1/subscriptions", &format!("customer={id}&items[0][plan]=gold")).await;
    let paid = await_events(&world, "stripe", "invoice_status.v1", 1).await;
    let last = paid.last().unwrap();
    assert_eq!((&last["data"]["status"], &last["data"]["paid"]), (&"paid".into(), &"99.00".into()));
    assert_eq!(last["data"]["customer"], format!("ERP-P-{company}"));
    odoo.unlink(company).await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    assert_eq!(stripe.get("/v1/customers?limit=100").await["data"].as_array().unwrap().len(), 0);
    assert!(daemon.terminate().success());
    world.verify();
}
