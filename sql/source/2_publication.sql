-- 2. The publication, as the owner of the tables. Whole tables, each by name. Partitions come under their root's name.
create publication {publication} for table {tables} with (publish_via_partition_root = true);
