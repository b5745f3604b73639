-- The way out, after tailwater has been stopped. Until the slot is dropped it holds back WAL.
select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = {slot_literal};
drop publication if exists {publication};
drop owned by {role};
drop role {role};
