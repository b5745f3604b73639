//! What the demo's business users do, in a fixed order.

use super::odoo::{Odoo, OdooError};

const COMPANIES: [&str; 10] = [
    "Alpine Tools",
    "Borealis Foods",
    "Cobalt Marine",
    "Delta Freight",
    "Ember Glassworks",
    "Fjord Textiles",
    "Granite Homes",
    "Harbor Optics",
    "Indigo Paper",
    "Juniper Labs",
];
const PEOPLE: [&str; 8] = [
    "Ada Fisher",
    "Ben Okafor",
    "Chiara Rossi",
    "Deniz Kaya",
    "Elif Sato",
    "Farid Haddad",
    "Greta Lind",
    "Hugo Silva",
];

/// See the module's text.
#[derive(Default)]
pub struct Scenario {
    step: usize,
    companies: Vec<i32>,
    contacts: Vec<i32>,
}

impl Scenario {
    /// The next business action.
    pub async fn step(&mut self, odoo: &mut Odoo) -> Result<(), OdooError> {
        let step = self.step;
        self.step += 1;
        let pick = |list: &[i32]| list.get(step % list.len().max(1)).copied();
        let (company, contact) = (pick(&self.companies), pick(&self.contacts));
        let Some(company) = company.filter(|_| step >= 4) else {
            return self.create_company(odoo, step).await;
        };
        match (step % 9, contact) {
            (0, _) => self.create_company(odoo, step).await,
            (1 | 2, _) => {
                let name = PEOPLE.get(step % PEOPLE.len()).copied().unwrap_or_default();
                let email = format!("{}{step}@example.com", name.to_lowercase().replace(' ', "."));
                self.contacts.push(odoo.create_contact(company, name, &email).await?);
                Ok(())
            }
            (3, _) => odoo.write(company, "phone", &format!("+1 212 555 {step:04}")).await,
            (4, _) => odoo.tag(company, &[1, 1 + i32::from(step.is_multiple_of(2))]).await,
            (5, _) => odoo.rename(company, &format!("{} Group {step}", name_of(step))).await,
            // A write that changes nothing which is mapped: it ends before any call.
            (6, _) => odoo.write(company, "write_uid", &2_i32).await,
            (7, _) => odoo.write(company, "city", &format!("Springfield {step}")).await,
            (_, Some(contact)) if step.is_multiple_of(2) => {
                self.contacts.retain(|id| *id != contact);
                odoo.unlink(contact).await
            }
            (_, _) => match self.companies.iter().rev().find(|id| **id != company).copied() {
                Some(loser) if self.companies.len() > 4 => {
                    self.companies.retain(|id| *id != loser);
                    odoo.merge(company, loser).await
                }
                _ => odoo.write(company, "active", &!step.is_multiple_of(4)).await,
            },
        }
    }

    async fn create_company(&mut self, odoo: &mut Odoo, step: usize) -> Result<(), OdooError> {
        let name = name_of(step);
        let email = format!("office{step}@{}.example", name.to_lowercase().replace(' ', "-"));
        let country = 1 + i32::try_from(step % 5).unwrap_or_default();
        self.companies.push(odoo.create_company(name, &email, country).await?);
        Ok(())
    }
}

fn name_of(step: usize) -> &'static str {
    COMPANIES.get(step % COMPANIES.len()).copied().unwrap_or_default()
}
