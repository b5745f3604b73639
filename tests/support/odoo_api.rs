//! A real Odoo's own API, for what people do there while a test runs. See `../shared/odoo`.

use std::path::PathBuf;
use tailwater::demo::private::write_secret;

use serde_json::{Value, json};

use super::World;

/// Where it is, and as whom it is spoken to.
pub struct OdooApi {
    pub url: String,
    pub database: String,
    /// Key of our own user, in a file.
    pub key_file: PathBuf,
    /// Login of our own user.
    pub bot: String,
    person: String,
    client: reqwest::Client,
}

impl OdooApi {
    /// Named by `TAILWATER_ODOO_API` (`http://127.0.0.1:18069/odoo19`) and `TAILWATER_ODOO_KEYS` (its credentials file).
    pub fn found(world: &World) -> Option<Self> {
        let (Ok(url), Ok(keys)) = (std::env::var("TAILWATER_ODOO_API"), std::env::var("TAILWATER_ODOO_KEYS"))
        else {
            eprintln!("SKIPPED: TAILWATER_ODOO_API and TAILWATER_ODOO_KEYS do not name a running Odoo");
            return None;
        };
        let (url, database) = url.rsplit_once('/').unwrap();
        let keys: Value = serde_json::from_slice(&std::fs::read(keys).unwrap()).unwrap();
        let key_file = world.directory.path().join("odoo.key");
        write_secret(&key_file, keys["bot"]["api_key"].as_str().unwrap()).unwrap();
        let bot = keys["bot"]["login"].as_str().unwrap().to_owned();
        let person = keys["admin"]["api_key"].as_str().unwrap().to_owned();
        // A second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::new();
        Some(Self { url: url.to_owned(), database: database.to_owned(), key_file, bot, person, client })
    }

    /// Settings of the target.
    pub fn target(&self) -> String {
        format!(
            "[targets.odoo]\nconnector = \"odoo\"\nbase_url = \"{}\"\napi_key = {{ file = \"{}\" }}\nsource = \"erp\"\n\
             settings = {{ database = \"{}\", timesheet_project = 1, timesheet_employee = 1 }}\n",
            self.url,
            self.key_file.display(),
            self.database
        )
    }

    /// Settings of the target, spoken to as an Odoo before 19.
    pub async fn older_target(&self) -> String {
        let asked = json!({"domain": [["login", "=", self.bot]]});
        let user = self.call("res.users", "search", asked).await[0].clone();
        let more = format!("memo_field = \"memo\", user = {user}, timesheet_project");
        self.target().replace("\"odoo\"", "\"odoo-rpc\"").replacen("timesheet_project", &more, 1)
    }

    /// As a person does it.
    pub async fn call(&self, model: &str, method: &str, arguments: Value) -> Value {
        let request = self
            .client
            .post(format!("{}/json/2/{model}/{method}", self.url))
            .header("authorization", format!("bearer {}", self.person))
            .header("x-odoo-database", &self.database)
            .header("content-type", "application/json")
            .body(arguments.to_string());
        let response = request.send().await.unwrap();
        let status = response.status();
        let body = response.text().await.unwrap();
        assert!(status.is_success(), "{model}.{method}: {status} {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// One field of a record.
    pub async fn field(&self, model: &str, id: i64, field: &str) -> Value {
        self.call(model, "read", json!({"ids": [id], "fields": [field]})).await[0][field].clone()
    }

    /// How many records there are.
    pub async fn count(&self, model: &str, domain: Value) -> i64 {
        self.call(model, "search_count", json!({"domain": domain})).await.as_i64().unwrap()
    }

    /// A customer; gives its number.
    pub async fn customer(&self, name: &str, email: &str) -> i64 {
        let values = json!({"name": name, "email": email, "is_company": true});
        self.call("res.partner", "create", json!({"vals_list": [values]})).await[0].as_i64().unwrap()
    }

    /// A posted invoice; gives its number.
    pub async fn invoice(&self, customer: i64, amount: f64) -> i64 {
        let line = json!([0, 0, {"name": "Support", "quantity": 1, "price_unit": amount, "tax_ids": []}]);
        let values = json!({"move_type": "out_invoice", "partner_id": customer, "invoice_line_ids": [line]});
        let id =
            self.call("account.move", "create", json!({"vals_list": [values]})).await[0].as_i64().unwrap();
        self.call("account.move", "action_post", json!({"ids": [id]})).await;
        id
    }
}
