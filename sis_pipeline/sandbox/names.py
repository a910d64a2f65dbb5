"""The invented words a world is made of: names, streets, subjects.
Only lists live here; who gets which name is decided in `population`."""

from __future__ import annotations

# fmt: off
FIRST_NAMES = {
    "female": (
        "Maribel", "Adaeze", "Zoë", "Renée", "Siobhán", "Anaïs", "Noor", "Priya", "Hana", "Lucía", "Inés", "Mei-Lin",
        "Ana-Sofía", "Freya", "Tamsin", "Odette", "Yara", "Keisha", "Imani", "Saoirse", "Leilani", "Wren", "Juniper",
        "Marisol", "Beatriz", "Chloë", "Dagny", "Elif", "Fatima", "Gwendolyn", "Hadley", "Ivana", "Jolene", "Kalani",
        "Linnéa", "Mireille", "Nadia", "Ottilie", "Paloma", "Quinn", "Rosalind", "Solveig", "Thandiwe", "Ursula",
        "Valentina", "Willa", "Ximena", "Ysabel", "Zainab", "Aoife", "Brónagh", "Calliope", "Delphine", "Esperanza",
        "Fenna", "Giulia", "Hyun-Ju", "Isadora", "Jacinda", "Katya",
    ),
    "male": (
        "Emeka", "José", "Søren", "Tomás", "André", "Liam", "Kwame", "Dmitri", "Rafael", "Joaquín", "Haruto",
        "Jean-Luc", "Mateo", "Oisín", "Björn", "Idris", "Tariq", "Malachi", "Nikolai", "Otis", "Pascal", "Quentin",
        "Rhys", "Santiago", "Thaddeus", "Umar", "Viktor", "Wendell", "Xavier", "Yusuf", "Zoltán", "Ambrose",
        "Bastien", "Caspian", "Desmond", "Ezekiel", "Fionn", "Gideon", "Hamza", "Ignacio", "Jalen", "Kenji",
        "Leopold", "Marcellus", "Nuno", "Orlando", "Percival", "Ramón", "Stellan", "Tobias", "Ulises", "Vasco",
        "Wyatt", "Yannick", "Zeke", "Anselm", "Bram", "Cormac", "D'Angelo", "Jo-Wilfried",
    ),
}

LAST_NAMES = (
    "Okafor", "Núñez", "O'Malley", "D'Amico", "Østergaard", "Kowalczyk", "Nakamura", "Haddad", "Thibodeaux",
    "Vandermeer", "Fitzwilliam", "Abernathy", "Castellanos", "Dlamini", "Eriksson", "Ferreira", "Gallardo",
    "Hashimoto", "Ivanov", "Jankowski", "Kapoor", "Lindqvist", "Mbeki", "Nguyen", "Obuya", "Peña", "Quispe",
    "Rasmussen", "Sørensen", "Takahashi", "Ueda", "Villanueva", "Whitcombe", "Xiong", "Yilmaz", "Zamora", "Ashdown",
    "Blackwood", "Carrow", "Delacroix", "Ellsworth", "Fairbanks", "Grimsby", "Hollowell", "Ingersoll", "Jessup",
    "Kettering", "Lockhart", "Merriweather", "Northcott", "Oyelaran", "Pemberton", "Quarles", "Ravenscroft",
    "Standish", "Thornbury", "Underhill", "Vasquez", "Wetherby", "Yarborough", "Zielinski", "Achterberg",
    "Bhattacharya", "Chukwu", "Desrosiers", "Esposito", "Farrokhzad", "Guðmundsson", "Hrubý", "Iñárritu",
    "Jørgensen", "Kovačević", "L'Estrange", "Müller", "Nowak", "O'Shaughnessy", "Pfeiffer", "Quigley", "Renaud",
    "Szabó", "Tahan", "Urquhart", "Vuković", "Weiß", "Xanthopoulos", "Yeboah", "Žukauskas", "Adeyemi", "Bianchi",
    "Cárdenas", "Donnelly", "Escudero", "Fonseca", "Gutiérrez", "Halloran", "Ibáñez", "Jaramillo", "Keane",
    "Lombardi", "Mwangi", "Nordström", "Ortega", "Paredes", "Quintero", "Rutkowski", "Salcedo", "Tesfaye", "Uchida",
    "Valdés", "Winslow", "Yamada", "Zapata",
)
AWKWARD_LAST_NAMES = ("Null", "NA", "None", "True", "Nan", "van der Berg", "de la Cruz", "St. John", "Ng", "O")
"""Surnames that careless readers turn into missing values, booleans or two columns."""

MIDDLE_NAMES = (
    "J", "Amara", "Lee", "Pilar", "Rosé", "Kofi", "Elm", "Mae", "Bo", "Anselm", "Ruth", "Noël", "Wynn", "Kai",
    "Ines", "T.",
)
PREFERRED_NAMES = (
    "Kit", "Bee", "Sunny", "Max", "Zaza", "Nico", "Teddy", "Lulu", "Ace", "Indy", "Remy", "Coco", "Jojo", "Sky",
    "Ash",
)
PRONOUNS = ("they/them", "she/her", "he/him")

STREETS = (
    "Larkspur Ln", "Old Mill Rd", "Quarry St", "Bell Tower Ave", "Fox Hollow Dr", "Canal St", "Cedar Knoll Ct",
    "Orchard Pl", "Harbor View Ter", "Tannery Row", "Windmill Way", "Saddler's Pass", "Ferry Landing",
    "Copper Beech Blvd", "Thistle Ct", "N 3rd St",
)
TOWNS = (
    ("Fernhollow", "07030"), ("Millbrook Falls", "07102"), ("East Fernhollow", "07031"),
    ("Alder Point", "08203"), ("Stonebridge", "08540"), ("Graywater", "07703"),
)  # fmt: skip
STATE = "NJ"

SCHOOL_NAMES = (
    "Larkspur", "Belltower", "Cedarknoll", "Quarry", "Foxhollow", "Canal", "Orchard", "Harborview", "Tannery",
    "Windmill", "Saddler", "Ferrylanding", "Copperbeech", "Thistle", "Alder", "Stonebridge", "Graywater",
    "Millbrook", "Heron", "Juniper", "Kestrel", "Lantern", "Mapleridge", "Nightingale", "Osprey", "Pinecrest",
    "Quailrun", "Redwing", "Sycamore", "Tamarack", "Umber", "Violethill", "Willow", "Yarrow", "Zephyr",
)

# fmt: on
CORE_SUBJECTS = (
    ("HR", "Homeroom", "", ""),
    ("EN", "English Language Arts", "English", "01999"),
    ("MA", "Mathematics", "Mathematics", "02999"),
    ("SC", "Science", "Science", "03999"),
    ("SS", "Social Studies", "Social Studies", "04999"),
)
"""Course prefix, title, subject and SCED code of what everybody of a grade takes the whole year."""
ELECTIVES = (
    ("AR", "Art", "Fine Arts", "05154"),
    ("MU", "Music", "Fine Arts", "05101"),
    ("PE", "Physical Education", "Physical Education", "08001"),
    ("CS", "Computing", "Computer Science", "10001"),
)
"""One in each semester."""
