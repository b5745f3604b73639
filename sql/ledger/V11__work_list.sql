-- A decision about a million deliveries walks through them in portions, in the order of their numbers.
create index delivery_aside_id on delivery (id) where aside;

-- A bulk request is forgotten once the outcome of each of its deliveries is known: the ledger has them all.
delete from bulk_call where state <> 'running';
drop index bulk_call_open;
alter table bulk_call drop column ended_at;
alter table bulk_call drop constraint bulk_call_state_check;
alter table bulk_call add check (state in ('sending', 'running'));
create index bulk_call_target on bulk_call (target);
create index bulk_call_epoch on bulk_call (epoch);

-- What is in doubt while its target is in shadow mode is looked at twice a minute; it had been put off by a day.
update delivery set due_at = now()
where open and state = 'sending' and reason = 'in doubt since before the target was in shadow mode';
