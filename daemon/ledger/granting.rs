//! What becomes possible at a target when an object has come to stand there, has gone, or has let go of a value.

use super::batch::{AppliedWrite, Lane};
use super::statements::{Prepared, parameters};

/// Objects of targets where one may wait for another: for a value or for the object itself.
#[derive(Default)]
pub struct Granting {
    targets: Vec<String>,
    objects: Vec<String>,
    ids: Vec<String>,
    present: Vec<bool>,
    /// What each holds from now on, by line.
    holds: Vec<String>,
}

impl Granting {
    /// Notes an object, and what it holds from now on.
    pub fn push(&mut self, lane: &Lane, write: &AppliedWrite) {
        self.targets.push(lane.target.clone());
        self.objects.push(lane.object.clone());
        self.ids.push(lane.canonical_id.clone());
        self.present.push(write.external_id.is_some());
        self.holds.push(serde_json::to_string(&write.holds).unwrap_or_else(|_| "[]".into()));
    }

    /// Its statements.
    pub fn statements(self, out: &mut Vec<Prepared>) {
        let Self { targets, objects, ids, present, holds } = self;
        if targets.is_empty() {
            return;
        }
        if present.iter().any(|present| !present) {
            // What refers to it was cut off at the target; it is delivered again when the object comes back.
            out.push((
                "update wish s set want = 'ref:' || w.object || '/' || w.canonical_id
                 from unnest($1::text[], $2::text[], $3::text[], $4::boolean[]) as w(target, object, canonical_id, present)
                 where not w.present and s.target = w.target
                   and s.want_md5 = md5('back:' || w.object || '/' || w.canonical_id)",
                parameters![targets.clone(), objects.clone(), ids.clone(), present.clone()],
            ));
        }
        // What can have become possible: what refers to these, what wanted what they let go of, and their own wishes, whose
        // obstacle may have gone while they were on their way. An object with a newer event gets nothing: that event brings
        // wishes of its own, and may be the object's end.
        out.push((
            "with w as (select * from unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::text[])
                          as w(target, object, canonical_id, present, holds)),
             released as (
               delete from reservation r using w
               where r.target = w.target and r.object = w.object and r.canonical_id = w.canonical_id
                 and not exists (select from json_array_elements_text(w.holds::json) h where h = r.want)
               returning r.target, r.want_md5),
             candidate as (
               select target, want_md5 from released
               union select target, md5('ref:' || object || '/' || canonical_id) from w where present
               union select s.target, s.want_md5 from wish s join w on s.target = w.target and s.object = w.object
                       and s.canonical_id = w.canonical_id),
             granted as (
               delete from wish s using candidate c
               where s.target = c.target and s.want_md5 = c.want_md5 and s.want not like 'back:%' and
                 case when s.want like 'ref:%'
                      then exists (select from applied a where a.target = s.target and a.state = 'present'
                                   and a.object = substr(split_part(s.want, '/', 1), 5)
                                   and a.canonical_id = substr(s.want, strpos(s.want, '/') + 1))
                      else not exists (select from reservation r where r.target = s.target and r.want_md5 = s.want_md5
                                       and not exists (select from released g where g.target = r.target
                                                       and g.want_md5 = r.want_md5)) end
               returning s.*)
             insert into delivery (event_seq, target, object, canonical_id, operation, fact, requires, state, round, class,
                                   head, event_month)
             select g.event_seq, g.target, g.object, g.canonical_id, 'upsert', coalesce(before.fact, false), g.requires, 'pending',
                    1 + coalesce(before.round, 0), coalesce(before.class, 2),
                    not exists (select from delivery h where h.target = g.target and h.object = g.object
                                and h.canonical_id = g.canonical_id and h.head),
                    coalesce(before.month, (select e.month from entry e where e.seq = g.event_seq),
                             (select k.month from kept_event k where k.seq = g.event_seq))
             from (select distinct event_seq, target, object, canonical_id, requires from granted) g
             left join lateral (select max(d.round) as round, min(d.class) as class, bool_or(d.fact) as fact,
                                       max(d.event_month) as month from delivery d
                                where d.target = g.target and d.object = g.object and d.canonical_id = g.canonical_id
                                  and d.event_seq = g.event_seq) before on true
             where not exists (select from delivery d where d.target = g.target and d.object = g.object
                               and d.canonical_id = g.canonical_id and d.event_seq > g.event_seq)",
            parameters![targets, objects, ids, present, holds],
        ));
    }
}
