"""SVG elements as escaped markup."""

from markupsafe import Markup, escape

Attribute = str | float | int


def tag(name: str, *children: Markup | str, **attributes: Attribute) -> Markup:
    """One element; text children and attribute values are escaped.

    A trailing underscore is dropped (``class_``) and the others become hyphens (``stroke_width``).
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    content = "".join(str(escape(child)) for child in children)
    return Markup("".join(parts) + (f">{content}</{name}>" if children else "/>"))


def drawing(title: str, description: str, *children: Markup, **attributes: Attribute) -> Markup:
    """An ``<svg>`` that a screen reader announces by its title and description."""
    heads = [tag("title", title)] + ([tag("desc", description)] if description else [])
    label = f"{title}. {description}" if description else title
    return tag("svg", *heads, *children, role="img", aria_label=label, **attributes)


def percent(fraction: float) -> str:
    """A coordinate that follows the width of the drawing, so that charts need no fixed size."""
    return f"{100 * fraction:.2f}%"
