//! A business day in random order, from a seed.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tailwater::demo::odoo::Odoo;

pub struct Workload {
    random: StdRng,
    companies: Vec<i32>,
    contacts: Vec<i32>,
    serial: u32,
}

impl Workload {
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), companies: Vec::new(), contacts: Vec::new(), serial: 0 }
    }

    fn company(&mut self) -> i32 {
        self.companies[self.random.random_range(0..self.companies.len())]
    }

    /// One business action.
    pub async fn step(&mut self, odoo: &mut Odoo) {
        self.serial += 1;
        let serial = self.serial;
        let action = if self.companies.len() < 3 { 0 } else { self.random.random_range(0..12) };
        match action {
            0 | 1 => {
                let name = format!("Company {serial}");
                let id = odoo.create_company(&name, &format!("office{serial}@example.com"), 1).await.unwrap();
                self.companies.push(id);
            }
            2..=4 => {
                let company = self.company();
                let email = format!("person{serial}@example.com");
                let id = odoo.create_contact(company, &format!("Person {serial}"), &email).await.unwrap();
                self.contacts.push(id);
            }
            5 => {
                let company = self.company();
                odoo.write(company, "phone", &format!("+1 555 {serial:04}")).await.unwrap();
            }
            6 => {
                let company = self.company();
                odoo.rename(company, &format!("Company {serial} renamed")).await.unwrap();
            }
            7 => {
                let company = self.company();
                let tags: Vec<i32> = (1..=3).filter(|_| self.random.random_bool(0.5)).collect();
                odoo.tag(company, &tags).await.unwrap();
            }
            8 => {
                let company = self.company();
                let active = self.random.random_bool(0.5);
                odoo.write(company, "active", &active).await.unwrap();
            }
            9 => {
                let company = self.company();
                odoo.write(company, "write_uid", &7_i32).await.unwrap();
            }
            10 if self.companies.len() > 5 => {
                let loser = self.companies.swap_remove(self.random.random_range(0..self.companies.len()));
                let winner = self.company();
                odoo.merge(winner, loser).await.unwrap();
            }
            11 if !self.contacts.is_empty() => {
                let contact = self.contacts.swap_remove(self.random.random_range(0..self.contacts.len()));
                odoo.unlink(contact).await.unwrap();
            }
            _ => {
                let company = self.company();
                odoo.write(company, "city", &format!("City {serial}")).await.unwrap();
            }
        }
    }
}

/// The seed of this run, printed; TAILWATER_SEED repeats one.
pub fn seed() -> u64 {
    let seed = std::env::var("TAILWATER_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().next_u64() % 1_000_000);
    println!("seed {seed} (TAILWATER_SEED={seed} repeats it)");
    seed
}
