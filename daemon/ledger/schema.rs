//! Brings the ledger's schema up to date: tables, views for auditors, rights.

use tlog_tiles::tlog::Hash;
use tokio_postgres::Client;

use super::tree::{TILE_WIDTH, Tree};
use super::{LedgerError, SCHEMA, WRITER_LOCK, migrations};
use crate::event::sha256_hex;

/// Views and rights, made anew whenever they are other ones than before.
const VIEWS: [&str; 5] = [
    include_str!("../../sql/reports/1_base.sql"),
    include_str!("../../sql/reports/2_sent.sql"),
    include_str!("../../sql/reports/3_duplicates.sql"),
    include_str!("../../sql/reports/4_people.sql"),
    include_str!("../../sql/ledger/rights.sql"),
];

/// Roles, for those who may make some.
pub const ROLES: &str = include_str!("../../sql/ledger/roles.sql");

/// True when something has to be done before this version can write.
pub async fn is_outdated(client: &mut Client) -> Result<bool, LedgerError> {
    let runner = migrations::migrations::runner();
    let newest = runner.get_migrations().iter().map(refinery::Migration::version).max();
    let known = client.query_one("select to_regclass('refinery_schema_history') is not null", &[]).await?;
    if !known.try_get::<_, bool>(0)? {
        return Ok(true);
    }
    let applied = runner.get_last_applied_migration_async(client).await?;
    if applied.map(|migration| migration.version()) < newest {
        return Ok(true);
    }
    let views: Option<String> = client.query_one("select views from installation", &[]).await?.try_get(0)?;
    Ok(views != Some(views_digest()))
}

/// Does it while nobody else writes. Whoever does not own the schema is refused.
pub async fn bring_up_to_date(client: &mut Client) -> Result<(), LedgerError> {
    if !is_outdated(client).await? {
        return Ok(());
    }
    let sql = "select coalesce((select pg_has_role(nspowner, 'usage') from pg_namespace where nspname = $1),
                               has_database_privilege(current_database(), 'create'))";
    if !client.query_one(sql, &[&SCHEMA]).await?.try_get::<_, bool>(0)? {
        return Err(LedgerError::NotOwner);
    }
    client.batch_execute(&format!("create schema if not exists {SCHEMA}")).await?;
    migrations::migrations::runner().run_async(client).await?;
    complete_subtrees(client).await?;
    complete_refs(client).await?;
    apply_views(client).await
}

/// Makes views and rights anew, for roles that may have come meanwhile.
pub async fn apply_views(client: &mut Client) -> Result<(), LedgerError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&VIEWS.join("\n")).await?;
    transaction.execute("update installation set views = $1", &[&views_digest()]).await?;
    Ok(transaction.commit().await?)
}

/// The same, under the lock of those who write.
pub async fn bring_up_to_date_alone(client: &mut Client) -> Result<(), LedgerError> {
    let row = client.query_one("select pg_try_advisory_lock($1)", &[&WRITER_LOCK]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Err(LedgerError::Locked);
    }
    let done = bring_up_to_date(client).await;
    client.execute("select pg_advisory_unlock($1)", &[&WRITER_LOCK]).await?;
    done
}

fn views_digest() -> String {
    sha256_hex(VIEWS.concat().as_bytes())
}

/// What entries are found by that were written before there was such a column.
async fn complete_refs(client: &mut Client) -> Result<(), LedgerError> {
    // Until then nothing has been read or brought up to date by this version.
    let fresh = client.query_one("select views is null from installation", &[]).await?;
    if !fresh.try_get::<_, bool>(0)? {
        return Ok(());
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute("alter table entry disable trigger append_only").await?;
    let mut after: i64 = 0;
    loop {
        let sql = "select seq, body from entry where seq > $1 order by seq limit 5000";
        let rows = transaction.query(sql, &[&after]).await?;
        if rows.is_empty() {
            break;
        }
        let (mut seqs, mut refs) = (Vec::new(), Vec::new());
        for row in &rows {
            after = row.try_get(0)?;
            if let Some(columns) = super::raw::body_columns(row.try_get(1)?) {
                seqs.push(after);
                refs.push(columns.refs.join(super::entry::SEPARATOR));
            }
        }
        let sql = "update entry e set refs = string_to_array(w.refs, E'\\x01')
                   from unnest($1::bigint[], $2::text[]) as w(seq, refs) where e.seq = w.seq and w.refs <> ''";
        transaction.execute(sql, &[&seqs, &refs]).await?;
    }
    transaction.batch_execute("alter table entry enable trigger append_only").await?;
    Ok(transaction.commit().await?)
}

/// Hashes of subtrees of entries that were written before there were any.
async fn complete_subtrees(client: &mut Client) -> Result<(), LedgerError> {
    let sql = "select size, (select count(*) from subtree where level = 1) from tree";
    let row = client.query_one(sql, &[]).await?;
    let (size, known): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let width = i64::try_from(TILE_WIDTH).unwrap_or(i64::MAX);
    if known >= size / width {
        return Ok(());
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute("alter table subtree disable trigger user; delete from subtree").await?;
    transaction.batch_execute("alter table subtree enable trigger user").await?;
    let mut tree = Tree::default();
    let mut after: i64 = 0;
    loop {
        let sql = "select seq, leaf from entry where seq > $1 order by seq limit 10000";
        let rows = transaction.query(sql, &[&after]).await?;
        for row in &rows {
            after = row.try_get(0)?;
            let leaf: Result<[u8; 32], _> = row.try_get::<_, &[u8]>(1)?.try_into();
            tree.append(Hash(leaf.map_err(|_| LedgerError::Unreadable("a leaf".into()))?));
        }
        let completed = tree.take_completed();
        if !completed.is_empty() {
            let (sql, parameters) = super::seal_statements::subtree_statement(&completed);
            let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
                parameters.iter().map(|value| &**value as _).collect();
            transaction.execute(sql, &parameters).await?;
        }
        if rows.is_empty() {
            return Ok(transaction.commit().await?);
        }
    }
}
