-- What was emitted for an object stands with the row that is its root: one write less for each event, and nothing to look
-- up for a new row. `row` is null for a row that is gone while its object is still to be taken leave of.
alter table image alter column row drop not null;
alter table image add column emitted text;         -- JSON: [[event type, canonical id, SHA-256 of the data], …]

-- Objects that were emitted before this version are recognised by what the targets hold: an equal body is not sent again.
drop table document;

-- What is owed is known from `delivery`; `applied` holds only what a target answered.
delete from applied where state = 'owed';
alter table applied drop constraint applied_state_check;
alter table applied add constraint applied_state_check check (state in ('present', 'absent'));

-- Each index costs at every delivery: one of all deliveries of an object, one of what is open, one of what waits for
-- another time.
drop index delivery_lane, delivery_history;
create index delivery_lane on delivery (target, object, canonical_id, id);
create index delivery_waiting on delivery (target, due_at) where state in ('pending', 'sending') and due_at > created_at;
