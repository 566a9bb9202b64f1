"""An independent linker: methods.md section 1 in plain loops over dicts, slow and without polars.

Written from methods.md before the code was read. Where methods.md is silent, the comment says which reading was taken.
"""

from datetime import timedelta


def link(films, cacs, clinical, events, rules):
    """Films, CTs (None without truth), people and events as lists of dicts -> (cohort, attrition)."""
    people = {film["patient_id"] or ("nameless", n): [] for n, film in enumerate(films)}
    people |= {row["patient_id"]: [] for row in cacs or []}
    for n, film in enumerate(films):
        people[film["patient_id"] or ("nameless", n)].append(film)
    cts = {name: [row for row in cacs or [] if row["patient_id"] == name] for name in people}

    def frontal(name):
        # A film without a date is a frontal view, but its distance from a CT is not known; without CTs it is no start.
        return any(film["is_eligible"] and (cacs is not None or film["study_date"]) for film in people[name])

    chosen = {name: _choose(people[name], cts[name], cacs is not None, rules) for name in people}
    facts = {name: _facts(name, chosen[name], clinical) for name in people if chosen[name]}
    steps = [
        ("no linkable id", lambda name: isinstance(name, tuple)),
        ("no radiograph", lambda name: not any(film["is_radiograph"] for film in people[name])),
        ("no frontal view", lambda name: not frontal(name)),
    ]
    if cacs is not None:
        steps.append(("no CACS", lambda name: not cts[name]))
        steps.append(("no CACS in the window", lambda name: chosen[name] is None))
    steps.append(
        (
            "age missing or under the minimum",
            lambda name: facts[name]["age_years"] is None or facts[name]["age_years"] < rules["minimum_age_years"],
        )
    )
    steps += [
        (f"exclude_if {column}", lambda name, column=column: facts[name][column] is True)
        for column in rules["exclude_if"]
    ]
    steps += [
        (f"exclude_between {kind}", lambda name, kind=kind: _between(chosen[name], events, name, kind))
        for kind in rules["exclude_between"]
    ]
    left, attrition = _exclude(list(people), steps)
    cohort = [{"patient_id": name, **facts[name]} for name in sorted(left)]
    return cohort, attrition


def _exclude(names, steps):
    attrition = []
    for reason, is_out in steps:
        kept = [name for name in names if not is_out(name)]
        attrition.append((reason, len(names), len(names) - len(kept), len(kept)))
        names = kept
    return names, attrition


def _choose(films, cts, truth_required, rules):
    """(film, CT) or None. The earliest CT with at least one eligible film; its nearest film."""
    dated = [film for film in films if film["is_eligible"] and film["study_date"]]
    if not truth_required:
        first = sorted(dated, key=lambda film: (film["study_date"], *_order(film)))
        return (first[0], None) if first else None
    for ct in sorted(cts, key=lambda row: row["ct_date"]):
        best = None
        for film in dated:
            days = (film["study_date"] - ct["ct_date"]).days
            if abs(days) > rules["maximum_days_between"]:
                continue
            if rules["pairing"] == "nearest_before" and days > 0:
                continue
            if rules["pairing"] == "nearest_after" and days < 0:
                continue
            key = (abs(days), days > 0, *_order(film))
            if best is None or key < best[0]:
                best = (key, film)
        if best:
            return best[1], ct
    return None


def _order(film):
    return film["acquisition_time"] is None, film["acquisition_time"] or "", film["image_id"]


def _facts(name, pair, clinical):
    film, ct = pair
    person = next((row for row in clinical if row["patient_id"] == name), {})
    if person.get("birth_date"):
        age = age_on(person["birth_date"], film["study_date"])
    elif person.get("age_years") is not None:
        age = person["age_years"]
    else:
        age = film["age_years"]
    bmi = person.get("bmi")
    if bmi is None and person.get("height_cm") is not None and person.get("weight_kg") is not None:
        bmi = person["weight_kg"] / (person["height_cm"] / 100) ** 2
    days = (film["study_date"] - ct["ct_date"]).days if ct else None
    return {
        "site": person.get("site") or film["site"] or "unknown",
        "image_id": film["image_id"],
        "study_date": film["study_date"],
        "ct_date": ct["ct_date"] if ct else None,
        "days_between": days,
        "cacs": ct["cacs"] if ct else None,
        "true_category": category(ct["cacs"]) if ct else None,
        "age_years": age if age is not None and age >= 0 else None,
        "sex": person.get("sex") or film["sex"],
        "bmi": bmi if bmi is not None and 10 <= bmi <= 100 else None,
        "birth_date": person.get("birth_date"),
        "prior_pci": person.get("prior_pci"),
    }


def category(cacs):
    if cacs == 0:
        return "CAC 0"
    if cacs < 100:
        return "CAC 1-99"
    return "CAC 100-399" if cacs < 400 else "CAC 400+"


def age_on(birth, day):
    """Completed years, and the days since the last birthday as a fraction of 365.25."""
    whole = day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day))
    leap_day = (birth.month, birth.day) == (2, 29)
    try:
        birthday = birth.replace(year=birth.year + whole)
    except ValueError:
        assert leap_day
        birthday = birth.replace(year=birth.year + whole, day=28)
    return whole + (day - birthday).days / 365.25


def _between(pair, events, name, kind):
    film, ct = pair
    scans = [film["study_date"]] + ([ct["ct_date"]] if ct else [])
    return any(
        row["patient_id"] == name and row["event_type"] == kind and min(scans) <= row["event_date"] <= max(scans)
        for row in events
    )


def follow(cohort, unreadable, scored, last_contacts, events, rules):
    """Cohort rows, image_ids refused and scored, and tables -> (analysis set, attrition, n_blanked, n_late)."""
    rows = {row["patient_id"]: dict(row) for row in cohort}
    last = {row["patient_id"]: row["last_contact_date"] for row in last_contacts}
    used, n_blanked, n_late = {}, 0, 0
    for name, row in rows.items():
        scans = [day for day in (row["study_date"], row["ct_date"]) if day]
        row["first"], row["t0"] = min(scans), max(scans)
        row["start"] = row["t0"] + timedelta(days=rules["landmark_days"])
        # Blanked and late events are counted in the people whose follow-up is looked at.
        if name in last and row["image_id"] not in unreadable and row["image_id"] in scored:
            used[name], blanked, late = _used_events(row, last[name], events, rules)
            n_blanked, n_late = n_blanked + blanked, n_late + late

    def has(name, kinds, is_then):
        return any(kind in kinds and is_then(day, rows[name]) for day, kind, _ in used[name])

    major = ("component", "competing")
    steps = [
        ("unreadable", lambda name: rows[name]["image_id"] in unreadable),
        ("no score", lambda name: rows[name]["image_id"] not in scored),
        ("no follow-up", lambda name: name not in last),
        ("event between the scans", lambda name: has(name, major, lambda day, row: row["first"] <= day <= row["t0"])),
    ]
    if rules["exclude_prior"]:
        steps.append(("prior event", lambda name: has(name, major, lambda day, row: day < row["first"])))
    steps.append(
        (
            "event or lost by the landmark" if rules["landmark_days"] > 0 else "no time after t0",
            lambda name: (
                last[name] <= rows[name]["start"]
                or has(name, ("terminal",), lambda day, row: day <= row["start"])
                or has(name, major, lambda day, row: row["t0"] < day <= row["start"])
            ),
        )
    )
    left, attrition = _exclude(list(rows), steps)
    return [_course(rows[name], last[name], used[name]) for name in sorted(left)], attrition, n_blanked, n_late


def _used_events(row, last_contact, events, rules):
    """Events of one patient as (day, kind, type), less blanked ones and those after the last contact, both counted."""
    used, n_blanked, n_late = [], 0, 0
    for event in events:
        kind = _kind(event["event_type"], rules)
        if event["patient_id"] != row["patient_id"] or kind is None:
            continue
        since = (event["event_date"] - (row["ct_date"] or row["t0"])).days
        if 0 <= since <= rules["blanking_days"].get(event["event_type"], -1):
            n_blanked += 1
        elif event["event_date"] > last_contact:
            n_late += 1
        else:
            used.append((event["event_date"], kind, event["event_type"]))
    return used, n_blanked, n_late


def _course(row, last_contact, used):
    """One row of the analysis set."""
    end, status, component = last_contact, 0, None
    after = [event for event in used if event[0] > row["start"]]
    if after:
        rank = ("component", "competing", "terminal")
        # Two components on one day: methods.md is silent; the first in the alphabet names the day.
        end, kind, event_type = min(after, key=lambda event: (event[0], rank.index(event[1]), event[2]))
        status = {"component": 1, "competing": 2, "terminal": 0}[kind]
        component = event_type if kind == "component" else None
    if row["birth_date"]:
        age = age_on(row["birth_date"], row["t0"])
    else:
        age = row["age_years"] + (row["t0"] - row["study_date"]).days / 365.25
    return {
        "patient_id": row["patient_id"],
        "t0": row["t0"],
        "time_days": (end - row["start"]).days,
        "status": status,
        "first_component": component,
        "age_at_t0_years": age,
    }


def _kind(event_type, rules):
    for kind in ("components", "competing", "terminal"):
        if event_type in rules[kind]:
            return {"components": "component"}.get(kind, kind)
    return None
