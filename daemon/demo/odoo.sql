-- The part of an Odoo 19 database that tailwater's shipped mapping reads, with Odoo's own names, types and foreign keys,
-- and some columns it does not read.
create table res_country (id serial primary key, code varchar(2), name jsonb, currency_id int);
create table res_country_state (id serial primary key, country_id int references res_country, code varchar, name varchar);
create table res_partner_category (id serial primary key, name jsonb, color int, active boolean default true,
  write_date timestamp);
create table res_partner (
  id serial primary key, name varchar, complete_name varchar, parent_id int references res_partner on delete set null,
  commercial_partner_id int references res_partner on delete set null, is_company boolean, active boolean default true,
  type varchar default 'contact', ref varchar, vat varchar, email varchar, email_normalized varchar, phone varchar,
  website varchar, lang varchar default 'en_US', function varchar, street varchar, street2 varchar, zip varchar,
  city varchar, state_id int references res_country_state on delete restrict,
  country_id int references res_country on delete restrict, comment text, credit_limit jsonb, customer_rank int default 0,
  create_date timestamp, write_date timestamp, write_uid int);
create table res_partner_res_partner_category_rel (
  category_id int references res_partner_category on delete cascade,
  partner_id int references res_partner on delete cascade, primary key (category_id, partner_id));
create table res_company (id serial primary key, partner_id int not null references res_partner, name varchar);
create table res_users (id serial primary key, partner_id int not null references res_partner, login varchar,
  share boolean default false);
create table mail_message (id serial primary key, model varchar, res_id int, body text);

insert into res_country (code, name) values
  ('US', '{"en_US": "United States"}'), ('DE', '{"en_US": "Germany"}'), ('FR', '{"en_US": "France"}'),
  ('GB', '{"en_US": "United Kingdom"}'), ('JP', '{"en_US": "Japan"}');
insert into res_country_state (country_id, code, name) values (1, 'NY', 'New York'), (1, 'CA', 'California'), (2, 'BY', 'Bavaria');
insert into res_partner_category (name) values
  ('{"en_US": "Gold"}'), ('{"en_US": "Silver"}'), ('{"en_US": "Wholesale", "fr_FR": "Grossiste"}');
-- The ERP's own company and its users are partners too; they are no customers.
insert into res_partner (name, complete_name, is_company, email) values ('Our Own Company', 'Our Own Company', true, 'hq@own.example');
insert into res_partner (name, complete_name, is_company, email) values ('Administrator', 'Administrator', false, 'admin@own.example');
update res_partner set commercial_partner_id = id;
insert into res_company (partner_id, name) values (1, 'Our Own Company');
insert into res_users (partner_id, login) values (2, 'admin');
