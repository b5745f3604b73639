-- Numbers and types of a table's mapped columns, and its partitions: they may change without a word in the stream, and then
-- the table is read again. Null: not noted yet.
alter table relation add column shape text;
