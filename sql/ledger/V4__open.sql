-- Whether a delivery is open has a column of its own, so that the planner, which may have no statistics yet, looks into the
-- index of all open ones only where a query says `open`: for those of one lane it would read the whole backlog.
alter table delivery add column open boolean not null generated always as (state in ('pending', 'sending')) stored;
drop index delivery_open, delivery_waiting;
create index delivery_open on delivery (target, id) where open;
create index delivery_waiting on delivery (target, due_at) where open and due_at > created_at;
