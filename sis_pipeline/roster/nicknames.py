"""English nicknames and their given names, a small table that people review: each line names forms of one name.
It only raises a doubt for a person to settle (`near`); no two records are one student because of it."""

from __future__ import annotations

from collections.abc import Mapping

_FORMS = """
abigail abby abbie gail
albert al bert bertie
alexander alex xander sandy
alexandra alex sandra lexi sasha
alfred al fred alfie
amanda mandy
andrew andy drew
anthony tony
antonio tony
barbara barb
benjamin ben benny benji
catherine cathy cate kate katie
charles charlie chuck
charlotte charlie lottie
christina chris tina chrissy
christine chris tina chrissy
christopher chris topher kit
daniel dan danny
david dave davey
deborah deb debbie
dominic dom nick
dorothy dot dottie
edward ed eddie ted ned
eleanor ellie nora
elizabeth liz lizzie beth betsy betty eliza libby
emily em emmy
francis frank frankie
francisco paco pancho frank
gabriel gabe
gabriella gabby ella
gregory greg
guadalupe lupe lupita
gwendolyn gwen
henry hank harry
isabella bella izzy
isabelle belle izzy
jacob jake
jacqueline jackie
james jim jimmy jamie
jennifer jen jenny
jessica jess jessie
jesus chuy
john johnny jack
jonathan jon jonny
jose pepe joe
joseph joe joey
josephine jo josie
joshua josh
judith judy
katherine kate katie kathy kat
kathleen kathy kate katie
kenneth ken kenny
kimberly kim
lawrence larry
leonard leo len lenny
lillian lily lil
louis lou louie
lucas luke
madeline maddie
margaret maggie meg peggy greta
maria mari
matthew matt
maximilian max
megan meg
melissa mel missy
michael mike mikey mick
mitchell mitch
natalie nat
nathan nate nat
nathaniel nate nathan nat
nicholas nick nicky
nicole nikki nicky
olivia liv livvy
oscar ozzie
pamela pam
patricia pat patty trish tricia
patrick pat paddy
peter pete
philip phil pip
rachel rach
raymond ray
rebecca becca becky
richard rich rick ricky dick richie
robert rob robbie bob bobby bert
roberto beto
ronald ron ronnie
rosario chayo
russell russ
samantha sam sammy
samuel sam sammy
sebastian seb bastian
sophia sophie
stephanie steph
stephen steve stevie
steven steve stevie
susan sue susie
suzanne sue susie
theodore theo ted teddy
theresa terry tess tessa
thomas tom tommy
timothy tim timmy
valerie val
veronica ronnie vero
victor vic
victoria vicky tori
vincent vince vinny
virginia ginny
walter walt
william will bill billy willie liam
zachary zach zack
"""


def _table() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for name, *forms in (line.split() for line in _FORMS.strip().splitlines()):
        for form in forms:
            found.setdefault(name, set()).add(form)
            found.setdefault(form, set()).add(name)
    return {name: frozenset(others) for name, others in found.items()}


NICKNAMES: Mapping[str, frozenset[str]] = _table()
"""Name key -> the name keys that may be another form of it. Two nicknames of one name are not forms of each other."""
