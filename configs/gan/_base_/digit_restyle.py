# White digits on black -> another style, learnt from other digits: unpaired, 32x32. The true
# restyling of the validation digits is known, so that errors can be measured.
_base_ = "digit_outlines.py"
train_dataloader = dict(dataset=dict(type="DigitRestyle"))
val_dataloader = dict(dataset=dict(type="DigitRestyle"))
test_dataloader = val_dataloader
