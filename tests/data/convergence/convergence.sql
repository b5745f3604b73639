create table customer (id serial primary key, name varchar, email varchar, phone varchar, city varchar);
create table bill (id serial primary key, customer_id int references customer, number varchar, total numeric);

create function customers(first int, last int) returns void language sql as $$
  insert into customer (name, email, phone, city)
  select 'Customer ' || n, 'office' || n || '@example.com', '+1 555 ' || n, 'Springfield' from generate_series(first, last) n $$;
