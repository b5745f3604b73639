-- Targets may know objects that the ledger has forgotten: after this load they are looked up before they are created.
alter table load add column look_first boolean not null default false;
