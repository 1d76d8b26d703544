"""How several workers come to answer with another version at one moment: two phases, led by their parent.

Each worker reports what it could answer (`views.Candidate`). The parent settles what all of them answer (`views.View`),
proposes it (`rounds.Rounds`), and once every worker holds it, writes one number that all of them read (`counter`).
Start reading at `rounds`. Standard library only: the parent has no more.
"""
