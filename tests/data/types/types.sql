create type mood as enum ('happy', 'so so');
create domain euros as numeric(12, 2);
create domain small as int check (value < 1000);
create table thing (id int primary key, name varchar, flag boolean, note text);
create table other (id int primary key, name varchar);
-- Every type that Odoo uses and the common ones beside, in a table with an awkward name.
create schema "My Schema";
create table "My Schema"."Mixed ""Case""" (
  "Id" bigint primary key, b boolean, i2 smallint, i4 int, i8 bigint, f4 real, f8 double precision, n numeric,
  money_ numeric(12, 2), c char(5), v varchar, t text, by bytea, j json, jb jsonb, d date, ts timestamp, tz timestamptz,
  ti time, iv interval, u uuid, ip inet, m mood, e euros, s small, ia int[], ta text[], na numeric[], ma mood[],
  ja jsonb[], x xml, r int4range, g int generated always as (i4 * 2) stored);
create table parted (id int not null, region text not null, name text, primary key (id, region)) partition by list (region);
create table parted_eu partition of parted for values in ('eu');
create table parted_us partition of parted for values in ('us');
