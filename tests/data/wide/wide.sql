-- A row as wide as Odoo's: 40 columns, about half of them null, some 680 bytes on the wire.
create table wide (
  id serial primary key, name varchar, complete_name varchar, email varchar, phone varchar, website varchar,
  street varchar, street2 varchar, zip varchar, city varchar, country_code varchar, lang varchar, ref varchar, vat varchar,
  is_company boolean, active boolean, parent_id int, commercial_partner_id int, state_id int, country_id int, user_id int,
  team_id int, company_id int, color int, customer_rank int, supplier_rank int, create_uid int, write_uid int,
  credit_limit jsonb, properties jsonb, comment text, barcode varchar, tz varchar, function varchar, date date,
  debit_limit numeric, partner_latitude float8, signup_type varchar, create_date timestamp, write_date timestamp);

create function wide_rows(first int, last int) returns void language sql as $$
  insert into wide (name, complete_name, email, phone, street, zip, city, country_code, lang, ref, is_company, active,
    commercial_partner_id, country_id, company_id, customer_rank, create_uid, write_uid, credit_limit, comment, tz,
    debit_limit, create_date, write_date)
  select 'Customer number ' || n, 'Customer number ' || n, 'office' || n || '@example.com', '+1 555 ' || n,
    n || ' Main Street', lpad(n::text, 7, '0'), 'Springfield', 'US', 'en_US', 'REF' || n, true, true, n, 233, 1, 1, 2, 2,
    '{"1": 1000.5}', repeat(md5(n::text), 10), 'Europe/Berlin', 1234.56, now(), now()
  from generate_series(first, last) n $$;

-- `total` rows in transactions of `per` each.
create procedure wide_load(total int, per int) language plpgsql as $$
  begin
    for i in 0 .. total / per - 1 loop
      perform wide_rows(i * per + 1, (i + 1) * per);
      commit;
    end loop;
  end $$;
