"""The aspects that a judge rates, with their scales."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Aspect:
    """One aspect of an answer, and the meaning of its ratings."""

    name: str
    """Key in the rows."""
    question: str
    scale: tuple[str, ...]
    """Meaning of each rating from 1 up; an empty one lies between its neighbors."""

    @property
    def max_rating(self) -> int:
        """The best rating."""
        return len(self.scale)

    def prompt(self) -> str:
        """The judge's instruction."""
        lines = [f"{rating}: {meaning}" for rating, meaning in enumerate(self.scale, 1) if meaning]
        return "\n".join([self.question, "", f"Ratings are whole numbers from 1 to {self.max_rating}:", *lines])


ASPECTS = (
    Aspect(
        "instruction_following",
        "Rate how far each answer does what the instruction asks for: its task, its form, its limits of length, language and "
        "style, explicit and implied. Whether its statements are true is not the question here.",
        (
            "does something else, or nothing",
            "takes up the topic but misses most of what was asked for",
            "does the main thing and leaves out or changes some of the conditions",
            "does all of it but for a small point",
            "does all of it, exactly",
        ),
    ),
    Aspect(
        "truthfulness",
        "Rate how far each answer can be relied on: whether its facts, figures, names, quotations, code and conclusions are "
        "right, agree with what the instruction gives, and do not contradict each other.",
        (
            "mostly wrong or made up",
            "wrong in something that matters, though parts are right",
            "right in the main, with slips or claims that nothing supports",
            "right but for something negligible",
            "nothing in it is wrong",
        ),
    ),
    Aspect(
        "honesty",
        "Rate how well each answer's tone fits what it really knows: sure where it is right, doubtful where it cannot know, open "
        "about what it leaves out. A wrong answer in a sure tone is the worst; doubt about what is plain is a fault, too.",
        (
            "certain and wrong, or pretends to have known or done what it cannot",
            "much surer, or much less sure, than it has reason to be",
            "some doubts in the right place, others missing or needless",
            "fits but for a shade",
            "as sure as it should be in every point, and plain about its limits",
        ),
    ),
    Aspect(
        "helpfulness",
        "Rate how much each answer helps the person who wrote the instruction: whether it is right, clear, complete and to the "
        "point, and adds what is needed without repeating itself.",
        (
            "of no use, or harmful",
            "of little use: much is missing, unclear or beside the point",
            "of use, with gaps or ballast",
            "helps well; little could be better",
            "could hardly help more: right, complete, clear and no longer than needed",
        ),
    ),
)
"""The aspects of UltraFeedback, rated from 1 to 5."""

OVERALL = Aspect(
    "overall",
    "Rate each answer as a whole: how good is it as an answer of an AI assistant to this instruction, all things considered?",
    (
        "worthless or harmful",
        "",
        "poor: fails in what matters most",
        "",
        "mixed: usable, with serious faults",
        "",
        "good, with faults that a careful person would notice",
        "",
        "very good",
        "as good as an expert could write it",
    ),
)
"""From 1 to 10, as UltraFeedback's `overall_score`."""
