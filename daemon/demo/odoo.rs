//! Writes to an Odoo-shaped database the way Odoo's ORM does: INSERT and then UPDATE of the same row, children written
//! along with their company, one transaction for each call.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::pg::describe;

/// The schema and a little reference data.
pub const SCHEMA: &str = include_str!("odoo.sql");

/// An SQL error, in words.
#[derive(Debug, thiserror::Error)]
#[error("{}", describe(.0))]
pub struct OdooError(#[from] tokio_postgres::Error);

/// A business user at work.
pub struct Odoo {
    client: Client,
}

impl Odoo {
    /// Works on this session.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The session, for anything else.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A company. The INSERT holds what was typed, the UPDATE what Odoo computes.
    pub async fn create_company(&mut self, name: &str, email: &str, country: i32) -> Result<i32, OdooError> {
        let transaction = self.client.transaction().await?;
        let row = transaction
            .query_one(
                "insert into res_partner (name, is_company, email, country_id, phone, street, city, zip, create_date, write_date)
                 values ($1, true, $2, $3, '+1 212 555 0100', '1 Main Street', 'Springfield', '12345', now(), now())
                 returning id",
                &[&name, &email, &country],
            )
            .await?;
        let id: i32 = row.try_get(0)?;
        transaction
            .execute(
                "update res_partner set commercial_partner_id = id, complete_name = name, email_normalized = lower(email),
                        write_date = now() where id = $1",
                &[&id],
            )
            .await?;
        transaction
            .execute(
                "insert into mail_message (model, res_id, body) values ('res.partner', $1, 'created')",
                &[&id],
            )
            .await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// A contact of a company.
    pub async fn create_contact(&mut self, company: i32, name: &str, email: &str) -> Result<i32, OdooError> {
        let transaction = self.client.transaction().await?;
        let row = transaction
            .query_one(
                "insert into res_partner (name, is_company, parent_id, email, create_date, write_date)
                 values ($1, false, $2, $3, now(), now()) returning id",
                &[&name, &company, &email],
            )
            .await?;
        let id: i32 = row.try_get(0)?;
        transaction
            .execute(
                "update res_partner c set commercial_partner_id = p.commercial_partner_id,
                        complete_name = p.name || ', ' || c.name, email_normalized = lower(c.email), country_id = p.country_id
                 from res_partner p where p.id = c.parent_id and c.id = $1",
                &[&id],
            )
            .await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// Writes one column of a company; Odoo touches its children as well.
    pub async fn write(
        &mut self,
        partner: i32,
        column: &'static str,
        value: &(dyn ToSql + Sync),
    ) -> Result<(), OdooError> {
        let transaction = self.client.transaction().await?;
        let sql = format!("update res_partner set {column} = $2, write_date = now() where id = $1");
        transaction.execute(&sql, &[&partner, value]).await?;
        transaction
            .execute("update res_partner set write_date = now() where parent_id = $1", &[&partner])
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// A new name: the company twice, each child twice.
    pub async fn rename(&mut self, partner: i32, name: &str) -> Result<(), OdooError> {
        let transaction = self.client.transaction().await?;
        transaction
            .execute("update res_partner set name = $2, write_date = now() where id = $1", &[&partner, &name])
            .await?;
        transaction.execute("update res_partner set complete_name = name where id = $1", &[&partner]).await?;
        transaction
            .execute("update res_partner set write_date = now() where parent_id = $1", &[&partner])
            .await?;
        transaction
            .execute(
                "update res_partner set complete_name = $2 || ', ' || name where parent_id = $1",
                &[&partner, &name],
            )
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Sets exactly these tags.
    pub async fn tag(&mut self, partner: i32, tags: &[i32]) -> Result<(), OdooError> {
        let transaction = self.client.transaction().await?;
        transaction
            .execute(
                "delete from res_partner_res_partner_category_rel where partner_id = $1 and category_id <> all ($2)",
                &[&partner, &tags],
            )
            .await?;
        transaction
            .execute(
                "insert into res_partner_res_partner_category_rel (partner_id, category_id)
                 select $1, t from unnest($2::int[]) t on conflict do nothing",
                &[&partner, &tags],
            )
            .await?;
        transaction
            .execute("update res_partner set write_date = now() where id = $1 or parent_id = $1", &[&partner])
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Merges `loser` into `winner`, in raw SQL as Odoo does, the dying row included.
    pub async fn merge(&mut self, winner: i32, loser: i32) -> Result<(), OdooError> {
        let transaction = self.client.transaction().await?;
        let pair: [&(dyn ToSql + Sync); 2] = [&winner, &loser];
        transaction
            .execute(
                "update res_partner_res_partner_category_rel r set partner_id = $1 where partner_id = $2
                 and not exists (select from res_partner_res_partner_category_rel o
                                 where o.partner_id = $1 and o.category_id = r.category_id)",
                &pair,
            )
            .await?;
        transaction.execute("update res_partner set parent_id = $1 where parent_id = $2", &pair).await?;
        transaction
            .execute(
                "update res_partner set commercial_partner_id = $1 where commercial_partner_id = $2",
                &pair,
            )
            .await?;
        transaction
            .execute(
                "update res_partner c set complete_name = p.name || ', ' || c.name from res_partner p
                 where p.id = $1 and c.parent_id = $1",
                &[&winner],
            )
            .await?;
        transaction.execute("delete from res_partner where id = $1", &[&loser]).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Deletes a partner; its children become their own.
    pub async fn unlink(&mut self, partner: i32) -> Result<(), OdooError> {
        let transaction = self.client.transaction().await?;
        let children =
            transaction.query("select id from res_partner where parent_id = $1", &[&partner]).await?;
        transaction.execute("delete from res_partner where id = $1", &[&partner]).await?;
        for row in children {
            let id: i32 = row.try_get(0)?;
            transaction
                .execute(
                    "update res_partner set commercial_partner_id = id, complete_name = name where id = $1",
                    &[&id],
                )
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}
